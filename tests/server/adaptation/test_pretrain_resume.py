"""Does a pretraining that was stopped end as if nothing had happened, and is one of other settings refused?"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from common import wire
from common.checkpoint import checkpoint_path
from common.data.classes import load_table
from common.errors import UserError
from common.models.network import build_network, network_to_arrays
from common.settings.schema import RunConfig
from common.styles.bank import StyleBank
from common.styles.style import extract_style
from common.training import steps as network_training
from common.wire import Arrays
from server.adaptation import pretrain, pretrain_steps
from server.adaptation.pretrain import pretrained_model
from server.adaptation.pretrain_snapshot import images_hash, state_file
from server.loop import rounds
from server.loop.run import run
from server.simulate import check_run
from tests.support.federation import local_grid, metrics, network_config, same_arrays
from tests.support.local_grid import LocalGrid

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("narrow")]

SYNTHETIC = load_table("synthetic")

SITES = 4

PRETRAINED: dict[str, Any] = {
    "task": "adaptation",
    "source__steps": 7,  # 6 images in batches of 4: three epochs and a half
    "source__batch": 4,
    "transforms__flip": 0.5,
    "transforms__jitter": 0.3,
}

FEDERATED: dict[str, Any] = PRETRAINED | {
    "rounds": 1,
    "style__transfer": "fourier",
    "clusters__layers": "decoder",
    "clusters__exact": 2,
    "eval__shard": "eval.jsonl",
}


class PowerCut(BaseException):
    """Nothing below may catch it."""


def settings(scenes: Path, folder: Path, **changes: Any) -> RunConfig:
    return network_config(scenes, folder, **PRETRAINED | changes)


def bank_of(config: RunConfig, grey: int = 20) -> StyleBank | None:
    if config.style.transfer == "none":
        return None
    picture = np.full((64, 64, 3), grey, np.uint8)
    return StyleBank.of(config.style, {"night": extract_style(picture, config.style)})


def trained(config: RunConfig, run_dir: Path, grey: int = 20) -> Arrays:
    weights, statistics = network_to_arrays(build_network(SYNTHETIC.num_classes, config.network, config.seed))
    return pretrained_model(config, SYNTHETIC, weights | statistics, bank_of(config, grey), run_dir)


def keep_each_step(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Keep the state after every step, and cut the power after one; returns the steps kept, as they come."""
    real, kept = pretrain.save_snapshot, []

    def save(*arguments: Any) -> None:
        real(*arguments)
        kept.append(arguments[1].step)
        if kept[-1] == stop_after:
            raise PowerCut

    monkeypatch.setattr(pretrain_steps, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr("server.adaptation.pretrain.save_snapshot", save)
    return kept


def stop(config: RunConfig, run_dir: Path, step: int) -> Path:
    """Pretrain up to a step and return the state that is left."""
    with pytest.MonkeyPatch.context() as patch:
        keep_each_step(patch, step)
        with pytest.raises(PowerCut):
            trained(config, run_dir)
    return state_file(run_dir)


def read_state(file: Path) -> tuple[Arrays, dict[str, Any]]:
    with safe_open(file, framework="np") as opened:
        described = json.loads(opened.metadata()["pretraining"])
        return {name: opened.get_tensor(name) for name in opened.keys()}, described  # noqa: SIM118


def change(file: Path, **described: Any) -> None:
    """Write a state again with another header; arrays given as None go."""
    arrays, header = read_state(file)
    dropped = described.pop("without", None)
    arrays = {key: np.array(value) for key, value in arrays.items() if key != dropped}
    save_file(arrays, file, metadata={"pretraining": json.dumps(header | described)})


# --- the same bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sgd__algorithm": "adam", "style__transfer": "fourier", "source__plain": 0.3},
        {"sgd__momentum": 0.0, "source__steps": 0, "source__epochs": 4},
    ],
    ids=["momentum", "adam-styled", "plain-epochs"],
)
def test_a_pretraining_that_was_stopped_twice_ends_with_the_same_bits(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    config = settings(scenes, tmp_path, **changes)
    for step in (2, 5):  # the second time it goes on from the first
        assert read_state(stop(config, tmp_path / "stopped", step))[1]["step"] == step
    steps = keep_each_step(monkeypatch)
    found = trained(config, tmp_path / "stopped")
    last = config.source.steps or 8
    assert steps == list(range(6, last + 1))
    assert same_arrays(found, trained(config, tmp_path / "whole"))
    assert steps[-last:] == list(range(1, last + 1))
    # and whatever would follow: buffers, momentum, dropout, the mean loss
    one, other = (read_state(state_file(tmp_path / name)) for name in ("stopped", "whole"))
    assert same_arrays(one[0], other[0]) and one[1] == other[1]
    kinds = {name.split("/")[0] for name in one[0]}
    assert kinds == {"network", "dropout"} | ({"optimizer"} if config.sgd.momentum else set())
    assert any(name.endswith("num_batches_tracked") for name in one[0])


def test_the_loss_scale_goes_on_too(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed precision as on CUDA, with a scale that overflows: the steps lost to it are lost only once."""
    monkeypatch.setattr(network_training, "uses_float16", lambda sgd, device: True)
    monkeypatch.setattr(network_training, "LOSS_SCALE", 2.0**24)
    config = settings(scenes, tmp_path, source__steps=12)
    stopped = read_state(stop(config, tmp_path / "stopped", 6))[1]
    assert stopped["skipped"] > 0 and stopped["scaler"]["scale"] < 2.0**24
    keep_each_step(monkeypatch)
    assert same_arrays(trained(config, tmp_path / "stopped"), trained(config, tmp_path / "whole"))
    one, other = (read_state(state_file(tmp_path / name)) for name in ("stopped", "whole"))
    assert same_arrays(one[0], other[0]) and one[1] == other[1]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_another_kind_of_device_takes_over_all_but_the_draws_of_dropout(
    scenes: Path, tmp_path: Path, dropout: float
) -> None:
    config = settings(scenes, tmp_path, network__dropout=dropout)
    change(stop(config, tmp_path / "stopped", 5), device="cuda")
    found = trained(config, tmp_path / "stopped")
    assert same_arrays(found, trained(config, tmp_path / "whole")) == (dropout == 0)


def test_what_is_done_quickly_is_not_kept(scenes: Path, tmp_path: Path) -> None:
    trained(settings(scenes, tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_newest_state_replaces_the_one_before(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_each_step(monkeypatch)
    trained(settings(scenes, tmp_path), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["pretraining.safetensors"]


# --- a whole run ----------------------------------------------------------------------------------------


def stop_run(scenes: Path, folder: Path, step: int) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        keep_each_step(patch, step)
        with pytest.raises(PowerCut):
            run(local_grid(SITES), network_config(scenes, folder, **FEDERATED))
    return folder / "run"


def asked(grid: LocalGrid) -> set[str]:
    return {message.metadata.message_type for message in grid.sent}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, scenes: Path, narrow: None) -> Path:
    """A run that nothing happened to."""
    return run(local_grid(SITES), network_config(scenes, tmp_path_factory.mktemp("whole"), **FEDERATED))


@pytest.mark.parametrize("how", ["run directory", "file", "the same command", "another run directory"])
def test_a_run_goes_on_with_its_pretraining(scenes: Path, tmp_path: Path, whole: Path, how: str) -> None:
    """In the styles that it began with: no site is asked for its style again."""
    stopped = stop_run(scenes, tmp_path, 4)
    state = state_file(stopped)
    assert not (stopped / "metrics.jsonl").exists()
    given: dict[str, Any] = FEDERATED | {
        "resume": {"file": str(state), "the same command": ""}.get(how, str(stopped))
    }
    if how == "another run directory":
        given["run_dir"] = str(tmp_path / "other")
    grid = local_grid(SITES, shuffle=3)
    run_dir = run(grid, network_config(scenes, tmp_path, **given))
    assert [line["checkpoint_sha256"] for line in metrics(run_dir)] == [
        line["checkpoint_sha256"] for line in metrics(whole)
    ]
    assert asked(grid) == {wire.HELLO, wire.TRAIN} and wire.STYLE not in asked(grid)
    assert (
        f"going on with the pretraining in {state_file(run_dir)} after step 4"
        in (run_dir / "log.txt").read_text()
    )
    assert not state_file(run_dir).exists()
    assert state.exists() == (how == "another run directory")


def test_a_run_that_is_stopped_after_its_pretraining_goes_on_with_the_first_round(
    scenes: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: Any) -> bool:
        raise PowerCut

    with monkeypatch.context() as patch:
        keep_each_step(patch)
        patch.setattr(rounds, "train_round", cut)
        with pytest.raises(PowerCut):
            run(local_grid(SITES), network_config(scenes, tmp_path, **FEDERATED))
    steps = keep_each_step(monkeypatch)
    resumed = run(
        local_grid(SITES), network_config(scenes, tmp_path, resume=str(tmp_path / "run"), **FEDERATED)
    )
    assert steps == []  # nothing was left to do
    assert metrics(resumed)[0]["checkpoint_sha256"] == metrics(whole)[0]["checkpoint_sha256"]


def test_a_state_that_a_killed_process_left_is_gone_with_the_first_checkpoint(
    scenes: Path, tmp_path: Path
) -> None:
    stopped = stop_run(scenes, tmp_path, 4)
    half = state_file(stopped).with_name(".pretraining.safetensors.x1y2")
    half.write_bytes(b"half")
    run(local_grid(SITES), network_config(scenes, tmp_path, resume=str(stopped), **FEDERATED))
    assert {path.name for path in (stopped / "checkpoints").iterdir()} == {
        "round-0001.safetensors",
        "round-0001.json",
    }


def test_a_round_comes_before_a_pretraining(scenes: Path, tmp_path: Path, whole: Path) -> None:
    """A process that ended between the first checkpoint and the removal of the state has not lost the round."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.copy(checkpoint_path(whole, 1), state_file(tmp_path / "run"))  # nobody reads it
    given: dict[str, Any] = FEDERATED | {"rounds": 2, "resume": str(tmp_path / "run")}
    resumed = run(local_grid(SITES), network_config(scenes, tmp_path, **given))
    assert [line["round"] for line in metrics(resumed)] == [1, 2] and not state_file(resumed).exists()


# --- what belongs to something else ---------------------------------------------------------------------


@pytest.mark.parametrize("resume", [True, False], ids=["resumed", "started again"])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"source__lr": 0.5},
            r"was made with source\.lr = 0\.005, this run has 0\.5; go on with what it was",
        ),
        ({"source__steps": 8}, r"source\.steps = 7, this run has 8"),
        ({"seed": 1}, r"seed = 0, this run has 1"),
        ({"transforms__flip": 0.0}, r"transforms\.flip = 0\.5, this run has 0\.0"),
        ({"source__shard": "site-0.jsonl"}, r"was made with other images in source\.shard than this run has"),
        ({"source__checkpoint": "CHECKPOINT"}, r"source\.checkpoint = ''"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_pretraining_of_other_settings_is_refused_before_anything_is_sent(
    scenes: Path, tmp_path: Path, whole: Path, changes: dict[str, Any], sentence: str, resume: bool
) -> None:
    file = stop(network_config(scenes, tmp_path, **PRETRAINED), tmp_path / "run", 2)
    before = file.read_bytes()
    given = PRETRAINED | {
        key: str(whole) if value == "CHECKPOINT" else value for key, value in changes.items()
    }
    config = network_config(scenes, tmp_path, resume=str(tmp_path / "run") if resume else "", **given)
    grid = local_grid(SITES)
    with pytest.raises(UserError, match=sentence):
        run(grid, config)
    assert grid.sent == []
    with pytest.raises(UserError, match=sentence):
        check_run(config)
    assert file.read_bytes() == before


def test_other_styles_or_weights_are_refused(scenes: Path, tmp_path: Path) -> None:
    config = settings(scenes, tmp_path, style__transfer="fourier")
    stop(config, tmp_path, 2)
    with pytest.raises(UserError, match="was made with other styles than this run has"):
        trained(config, tmp_path, grey=200)
    start = network_to_arrays(build_network(SYNTHETIC.num_classes, config.network, 9))
    with pytest.raises(UserError, match="was made with other weights to start from than this run has"):
        pretrained_model(config, SYNTHETIC, start[0] | start[1], bank_of(config), tmp_path)


def test_what_is_about_the_rounds_may_change(scenes: Path, tmp_path: Path) -> None:
    stop(settings(scenes, tmp_path), tmp_path / "run", 5)
    changes = {"rounds": 9, "sgd__lr": 0.5, "network__batchnorm": "local", "transforms__eval_height": 32}
    other = settings(scenes, tmp_path, **changes | {"transforms__eval_width": 32, "teacher__update": "mean"})
    check_run(other)
    assert same_arrays(trained(other, tmp_path / "run"), trained(other, tmp_path / "whole"))


def test_the_images_may_lie_elsewhere_by_now(scenes: Path, tmp_path: Path) -> None:
    stop(settings(scenes, tmp_path), tmp_path / "run", 5)
    whole = trained(settings(scenes, tmp_path), tmp_path / "whole")
    shutil.copytree(scenes, tmp_path / "moved", ignore=shutil.ignore_patterns("cache"))
    described = json.loads((tmp_path / "moved" / "partition.json").read_text())
    assert not Path(described["root"]).is_absolute()
    moved = settings(tmp_path / "moved", tmp_path, source__shard=str(tmp_path / "moved" / "eval.jsonl"))
    assert same_arrays(trained(moved, tmp_path / "run"), whole)


def test_images_are_told_apart_by_names_labels_order_and_meaning(scenes: Path, tmp_path: Path) -> None:
    shard = pretrain.source_shard(settings(scenes, tmp_path))
    first = shard.entries[0]
    others = [
        replace(shard, entries=shard.entries[::-1]),
        replace(shard, entries=shard.entries[1:]),
        replace(shard, entries=(replace(first, label="other.png"), *shard.entries[1:])),
        replace(shard, classes=None),
        replace(shard, repair_sizes=True),
    ]
    hashes = {images_hash(one) for one in (shard, *others)}
    assert len(hashes) == 6
    assert images_hash(replace(shard, root=tmp_path, path=tmp_path, name="x")) == images_hash(shard)


@pytest.mark.parametrize(
    "fault", ["cut short", "of another kind", "of another network", "of another optimiser"]
)
def test_a_state_that_cannot_be_read_is_refused(scenes: Path, tmp_path: Path, fault: str) -> None:
    config = settings(scenes, tmp_path)
    file = stop(config, tmp_path / "run", 2)
    if fault == "cut short":
        file.write_bytes(file.read_bytes()[:5000])
    elif fault == "of another kind":
        save_file({"x": np.zeros(1, np.float32)}, file)
    elif fault == "of another network":
        change(file, without="network/head.4.bias")
    else:
        arrays, header = read_state(file)
        arrays["optimizer/gone/momentum_buffer"] = arrays["network/head.4.bias"]
        save_file(arrays, file, metadata={"pretraining": json.dumps(header)})
    with pytest.raises(UserError, match=r"cannot be (read|taken up).*; remove it to pretrain anew"):
        trained(config, tmp_path / "run")


def test_resuming_skips_the_pictures_that_were_decoded_before(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(settings(scenes, tmp_path), tmp_path / "run", 2)
    looked: list[str] = []
    for task in ("supervised", "adaptation"):
        monkeypatch.setattr(
            f"server.tasks.{task}.refuse_faulty", lambda shard, labels: looked.append(shard.name)
        )
    check_run(settings(scenes, tmp_path, eval__shard=""))
    assert "eval" in looked
    looked.clear()
    check_run(settings(scenes, tmp_path, eval__shard="", resume=str(tmp_path / "run")))
    assert "eval" not in looked and "site-0" in looked


def test_a_folder_without_a_round_or_a_pretraining_is_no_start(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        run(local_grid(SITES), settings(scenes, tmp_path, resume=str(tmp_path / "run")))
    stop(settings(scenes, tmp_path), tmp_path / "run", 2)
    supervised = network_config(scenes, tmp_path, resume=str(tmp_path / "run"))
    with pytest.raises(UserError, match="holds no checkpoint"):  # only adaptation pretrains
        run(local_grid(SITES), supervised)
