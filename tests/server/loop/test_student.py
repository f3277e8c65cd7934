"""Does a network learn a first stage's clusters without a label, go on after a stop, and serve without the backbone?"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.work.masks import UNSURE
from common import wire
from common.checkpoint import checkpoint_path, load_checkpoint
from common.data.manifest import read_shard, read_sites
from common.errors import UserError
from common.settings.schema import RunConfig
from server.commands.evaluate import evaluate_checkpoint
from server.commands.export import export_onnx
from server.commands.segment import segment
from server.evaluation import clusters
from server.loop.run import run
from server.run_dir import FIRST_STAGE
from server.settings.first_stage import first_stage_settings
from server.tasks.base import load_settings, task_of
from server.tasks.student import StudentTraining
from tests.support.federation import local_grid
from tests.support.local_grid import LocalGrid
from tests.support.scenes import write_synthetic
from tests.support.small_network import small_network

pytestmark = pytest.mark.slow

SITES = 3
STUDENT: dict[str, Any] = {
    "task": "student",
    "name": "tiny",
    "rounds": 3,
    "student.first-rounds": 3,
    "model.stages": "4",  # of the small network below
    "model.height": 65,
    "model.width": 97,
    "model.clusters": 6,
    "model.dim": 8,
    "network.architecture": "small",
    "network.weights": "random",
    "network.final-statistics": True,
    "transforms.height": 64,
    "transforms.width": 64,
    "sgd.algorithm": "adamw",
    "sgd.lr": 0.002,
    "sgd.head-factor": 4.0,
    "teacher.update": "mean",
    "teacher.confidence": 0.2,
    "local.steps": 2,
    "local.batch": 2,
    "sites.expected": SITES,
    "sites.wait-seconds": 1,
    "sites.deadline-seconds": 60,
    "eval.shard": "eval.jsonl",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites whose label files are folders: nobody can open one."""
    folder = write_synthetic(
        tmp_path_factory.mktemp("student"), sites=SITES, images_per_site=5, eval_images=3, size=(72, 96)
    )
    for shard in read_sites(folder):
        for index in range(len(shard)):
            label = shard.label_path(index)
            assert label is not None
            label.unlink()
            label.mkdir()
    return folder


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    """Networks of a fortieth of the parameters, in this process alone: nothing is cached in another one."""
    with small_network(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "run_in_subprocess", lambda function, *arguments: function(*arguments))
        yield


def settings(shards: Path, folder: Path, **changes: Any) -> RunConfig:
    given = {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
    places = {"simulation.shards": str(shards), "simulation.cache": str(folder / "cache")}
    return load_settings(
        STUDENT | {"model.weights": "random", "run-dir": str(folder / "run")} | places | given
    )


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> tuple[Path, LocalGrid]:
    """A run of both stages, and all that was sent."""
    grid = local_grid(SITES)
    return run(grid, settings(shards, tmp_path_factory.mktemp("whole"))), grid


def test_both_stages_leave_a_run_each(whole: tuple[Path, LocalGrid]) -> None:
    run_dir, _ = whole
    first, student = load_checkpoint(run_dir / FIRST_STAGE), load_checkpoint(run_dir)
    assert (first.config.task, first.round) == ("unsupervised", 3)
    assert (student.config.task, student.round, student.channels) == ("student", 3, 6)
    assert all(len(line["sites"]) == SITES for line in lines(run_dir))
    assert lines(run_dir)[-1]["miou"] is not None and lines(run_dir / FIRST_STAGE)[-1]["miou"] is not None
    assert student.mapping is not None and sorted(student.mapping) != [0] * 6
    page = (run_dir / "report.html").read_text()
    assert "Both stages" in page and f"{FIRST_STAGE}/report.html" in page


def test_a_site_gets_the_first_model_once(whole: tuple[Path, LocalGrid]) -> None:
    _, grid = whole
    asked = [m for m in grid.sent if m.metadata.message_type == wire.SUMS]
    masks = [m for m in asked if "option.masks" in m.content.config_records["facts"]]
    assert len(masks) == SITES


def test_masks_are_the_certain_pixels_and_their_counts_travel(whole: tuple[Path, LocalGrid]) -> None:
    run_dir, _ = whole
    saved = load_checkpoint(run_dir)
    total = sum(saved.extra[f"masks/site-{index}"] for index in range(SITES))
    folders = list((run_dir.parent / "cache" / "masks").iterdir())
    assert len(folders) == SITES
    seen = np.concatenate([np.asarray(Image.open(file)).ravel() for f in folders for file in f.glob("*.png")])
    assert np.array_equal(np.bincount(seen, minlength=256)[:6], total)
    assert 0.78 < (seen != UNSURE).mean() < 0.9  # 80 %, and pixels that lead as much as the last of them
    assert not list((run_dir.parent / "cache" / "masks").glob(".*"))


def test_a_stop_in_either_stage_changes_nothing(
    whole: tuple[Path, LocalGrid], shards: Path, tmp_path: Path
) -> None:
    run_dir, _ = whole
    for stage, kept in ((FIRST_STAGE, 1), ("", 1)):
        copy = tmp_path / (stage or "student")
        shutil.copytree(run_dir, copy / "run")
        for number in (2, 3):  # of what was written after the stop
            for suffix in (".json", ".safetensors"):
                checkpoint_path(copy / "run" / stage, number).with_suffix(suffix).unlink()
        metrics = copy / "run" / stage / "metrics.jsonl"
        metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:kept]))
        if stage:
            shutil.rmtree(copy / "run" / "checkpoints")
            (copy / "run" / "metrics.jsonl").unlink()
        config = settings(shards, copy, resume=str(copy / "run"))
        again = run(local_grid(SITES), config)
        assert again == copy / "run"
        assert lines(again)[-1]["checkpoint_sha256"] == lines(run_dir)[-1]["checkpoint_sha256"]


def test_a_first_stage_of_another_run_is_left_alone(
    whole: tuple[Path, LocalGrid], shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole[0] / FIRST_STAGE, tmp_path / "run" / FIRST_STAGE)
    with pytest.raises(UserError, match="resume="):
        run(local_grid(SITES), settings(shards, tmp_path))


def test_it_serves_without_the_backbone(
    whole: tuple[Path, LocalGrid], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, _ = whole
    # whatever opens a frozen backbone or its file from now on fails
    monkeypatch.setattr("common.models.backbone.load_backbone", None)
    monkeypatch.setattr("common.models.backbone.weights_path", None)
    record = evaluate_checkpoint(run_dir, shards / "eval.jsonl")
    assert record["miou"] == pytest.approx(lines(run_dir)[-1]["miou"])
    assert len(record["confusion"]) == 6 and len(record["cluster_share"]) == 6
    by_name = evaluate_checkpoint(run_dir, shards / "eval.jsonl", matching="checkpoint")
    assert by_name["miou"] == pytest.approx(record["miou"])
    images = [shards / "data" / entry.image for entry in read_shard(shards / "eval.jsonl").entries]
    assert segment(run_dir, tmp_path / "masks", images).is_file()
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="the extra 'export' is not installed")
    path = export_onnx(run_dir, tmp_path / "model.onnx", size=(72, 100))
    session = importlib.import_module("onnxruntime").InferenceSession(str(path))
    assert len(json.loads(session.get_modelmeta().custom_metadata_map["clusters"])) == 6


def test_deeplab_learns_masks_on_the_sites_own_labels_score(shards: Path, tmp_path: Path) -> None:
    """Masks are joined clusters with colors; sites hold what is scored; no EMA teacher labels what masks leave out."""
    for index in range(SITES):
        shutil.copy(shards / "eval.jsonl", shards / f"site-{index}-own.jsonl")
    changes = {"eval.where": "sites", "eval.shard": "{site}-own.jsonl", "rounds": 2, "eval.every": 0}
    changes |= {"network.architecture": "deeplab", "teacher.update": "never", "student.keep": 1.0}
    changes |= {"loss.objective": "principal", "centroids.over": 9, "centroids.starts": 2}
    changes |= {"codes.center": "auto", "codes.reach": 30.0, "refine.colors": 1.0, "refine.steps": 2}
    config = load_settings(settings(shards, tmp_path).to_flat() | changes)
    last = lines(run(local_grid(SITES), config))[-1]
    assert last["miou"] is not None and len(last["confusion"]) == 6


def test_a_site_that_lost_its_masks_makes_them_again(shards: Path, tmp_path: Path) -> None:
    grid = local_grid(SITES)
    config = settings(shards, tmp_path, rounds=4, network__final_statistics=False)

    real = grid.push_messages
    lost: list[str] = []

    def push(messages: Any) -> Any:
        messages = list(messages)
        first = messages[0].metadata
        masks = tmp_path / "cache" / "masks"
        if not lost and masks.is_dir() and (first.message_type, first.group_id) == (wire.TRAIN, "2"):
            lost.append("2")
            shutil.rmtree(masks)
        return real(messages)

    grid.push_messages = push  # type: ignore[method-assign]
    found = lines(run(grid, config))
    assert [line["counted"] for line in found] == [True, False, True, True]
    assert "masks" in str(found[1]["quarantined"])


def test_settings_of_both_stages_are_checked() -> None:
    stage = first_stage_settings(load_settings(STUDENT | {"aggregation.optimizer": "momentum"}))
    assert (stage.task, stage.rounds, stage.aggregation.optimizer) == ("unsupervised", 3, "none")
    assert stage.model.clusters == 6 and stage.network == RunConfig().network
    plain = first_stage_settings(load_settings(STUDENT | {"preset": "label-free", "refine.colors": 0.0}))
    assert (plain.refine.colors, plain.codes.reach) == (0.0, 70.0)
    for key, value, named in (
        ("centroids.share", "head", "centroids.share"),
        ("model.clusters", 255, "model.clusters"),
        ("aggregation.rule", "median", "first stage"),
        ("teacher.distill-weight", 1.0, "distill-weight"),
        ("clusters.layers", "bn", "clusters.layers"),
        ("privacy.secure-sum", True, "task"),
    ):
        with pytest.raises(UserError, match=named):
            config = load_settings(STUDENT | {key: value})
            task_of(config).training(config, None)


def test_other_tasks_refuse_a_students_settings() -> None:
    with pytest.raises(UserError, match="student"):
        load_settings({"task": "supervised", "student.keep": 0.5})
    with pytest.raises(UserError, match="student"):
        load_settings({"student.keep": 0.5})


def test_rare_clusters_weigh_more_and_all_pixels_one_on_average() -> None:
    config = load_settings(STUDENT)
    training = task_of(config).training(config, None)
    assert isinstance(training, StudentTraining)
    counts = np.array([7_999_984, 16, 0, 1_000_000, 1_000_000, 0], dtype=np.int64)
    training.counts = {"site-0": counts // 4, "site-1": counts - counts // 4}
    weights, share = training.balance(), counts / counts.sum()
    assert (share * weights).sum() == pytest.approx(1)
    assert weights[3] / weights[0] == pytest.approx((share[3] / share[0]) ** -0.25)
    assert weights[1] == weights[2] == weights[5]  # below a frequency of 1e-4 all are as rare
    training.counts = {}
    assert np.isfinite(training.balance()).all()
