"""Is the source model trained on labels in the sites' styles, by its own class table, and is a wrong one refused?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.checkpoint import Checkpoint, checkpoint_path, save_checkpoint
from common.data.classes import ClassTable, load_table
from common.data.data_loader import ImageDataset
from common.errors import UserError
from common.losses.reductions import reduce_cross_entropy
from common.models.network import build_network, network_signature, network_to_arrays
from common.settings.schema import RunConfig
from common.styles.bank import StyleBank
from common.styles.style import extract_style
from common.wire import Arrays
from server.adaptation.pretrain import STYLES_PICTURE, load_pretrained, pretrained_model, source_shard
from server.adaptation.styles import wants_styles
from server.tasks.adaptation import AdaptationTraining
from tests.support.federation import network_config, same_arrays
from tests.support.training import train_anew
from tests.support.workshop import run_command

pytestmark = pytest.mark.usefixtures("narrow")

SYNTHETIC = load_table("synthetic")


def settings(scenes: Path, folder: Path, **changes: Any) -> RunConfig:
    return network_config(scenes, folder, task="adaptation", **changes)


def start(config: RunConfig) -> Arrays:
    weights, statistics = network_to_arrays(build_network(SYNTHETIC.num_classes, config.network, config.seed))
    return weights | statistics


def by_hand(config: RunConfig, scenes: Path, bank: StyleBank | None, steps: int) -> Arrays:
    """Write pretraining out: these pictures, that loss, so many steps."""
    shard = source_shard(config)
    model = build_network(SYNTHETIC.num_classes, config.network, config.seed)
    pictures = ImageDataset(
        shard,
        config.transforms,
        (config.seed, "source"),
        True,
        shard.classes,
        workers=0,
        restyle=None if bank is None else bank.restyle(config.style, config.source.plain),
    )
    train_anew(
        model,
        pictures.batches(steps, config.source.batch),
        lambda logits, labels: reduce_cross_entropy(logits, labels, config.reduction),
        config.sgd.model_copy(update={"lr": config.source.lr}),
        steps=steps,
        total_steps=steps,
        seed=config.seed,
    )
    weights, statistics = network_to_arrays(model)
    return weights | statistics


def test_pretraining_is_supervised_training_for_so_many_steps(scenes: Path, tmp_path: Path) -> None:
    """With steps 0, epochs count: 6 images in batches of 4 are 2 steps an epoch."""
    for given, steps in (({"source__steps": 3}, 3), ({"source__steps": 0, "source__epochs": 2}, 4)):
        config = settings(scenes, tmp_path, source__batch=4, source__lr=0.02, **given)
        found = pretrained_model(config, SYNTHETIC, start(config), None, tmp_path)
        assert same_arrays(found, by_hand(config, scenes, None, steps))
    other = settings(scenes, tmp_path, source__batch=4, source__lr=0.03, **given)
    assert not same_arrays(pretrained_model(other, SYNTHETIC, start(other), None, tmp_path), found)


def test_source_images_take_on_the_styles_of_sites(scenes: Path, tmp_path: Path) -> None:
    config = settings(scenes, tmp_path, style__transfer="fourier", source__plain=0.5)
    dark = np.full((64, 64, 3), 20, np.uint8)
    bank = StyleBank.of(config.style, {"night": extract_style(dark, config.style)})
    found = pretrained_model(config, SYNTHETIC, start(config), bank, tmp_path)
    assert same_arrays(found, by_hand(config, scenes, bank, 2))
    plain = settings(scenes, tmp_path)
    assert not same_arrays(found, pretrained_model(plain, SYNTHETIC, start(plain), None, tmp_path))
    assert (tmp_path / "pictures" / STYLES_PICTURE).is_file()


def test_styles_of_an_earlier_run_are_taken_instead_of_asking(scenes: Path, tmp_path: Path) -> None:
    config = settings(scenes, tmp_path, style__transfer="fourier")
    bank = StyleBank.of(
        config.style, {"night": extract_style(np.full((64, 64, 3), 20, np.uint8), config.style)}
    )
    bank.save(tmp_path / "kept.safetensors")
    kept = {"style__transfer": "fourier", "source__styles": str(tmp_path / "kept.safetensors")}
    work = AdaptationTraining.of(settings(scenes, tmp_path, **kept), SYNTHETIC)

    def ask(*_: object) -> Any:
        raise AssertionError("a site was asked for its style")

    state = work.prepare(work.initial(0), ask, ["site-0"], tmp_path)
    assert same_arrays(state.pretrained, by_hand(config, scenes, bank, 2))
    assert wants_styles(config)
    grouped = {"clusters__layers": "bn", "clusters__exact": 2}
    assert wants_styles(settings(scenes, tmp_path, **kept, **grouped))  # who is like whom is another question


def test_a_bank_that_only_clusters_changes_no_picture(scenes: Path, tmp_path: Path) -> None:
    config = settings(scenes, tmp_path)
    asked = config.style.model_copy(update={"transfer": "fourier"})
    bank = StyleBank.of(asked, {"night": extract_style(np.zeros((64, 64, 3), np.uint8), asked)})
    found = pretrained_model(config, SYNTHETIC, start(config), bank, tmp_path)
    assert same_arrays(found, pretrained_model(config, SYNTHETIC, start(config), None, tmp_path))
    assert not (tmp_path / "pictures").exists()


def test_a_bank_of_another_size_is_refused(scenes: Path, tmp_path: Path) -> None:
    config = settings(scenes, tmp_path, style__transfer="fourier")
    other = config.style.model_copy(update={"height": 32})
    bank = StyleBank.of(other, {"night": extract_style(np.zeros((64, 64, 3), np.uint8), other)})
    with pytest.raises(UserError, match=r"The style bank holds .*32 x 64.*; the settings ask for .*64 x 64"):
        pretrained_model(config, SYNTHETIC, start(config), bank, tmp_path)


def test_the_source_keeps_its_own_meaning_of_labels(scenes: Path, tmp_path: Path) -> None:
    """A source folder may name the run's classes by other raw values than the sites."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "list.jsonl").write_text(json.dumps({"image": "a.png", "label": "b.png"}) + "\n")
    config = settings(scenes, tmp_path, source__shard=str(folder / "list.jsonl"), eval__classes="synthetic")
    assert source_shard(config).classes == SYNTHETIC  # no table of its own: the run's
    described = {"dataset": "f", "rule": "iid", "seed": 0, "root": ".", "sites": {"site-0": 1}}
    (folder / "partition.json").write_text(
        json.dumps(described | {"classes": load_table("camvid").to_json()})
    )
    assert source_shard(config).classes == load_table("camvid")
    assert source_shard(config).root == folder.resolve()


def test_a_relative_source_lies_in_the_shards_folder(scenes: Path, tmp_path: Path) -> None:
    found = source_shard(settings(scenes, tmp_path))
    assert found.path == scenes / "eval.jsonl" and found.classes == SYNTHETIC and found.labelled
    with pytest.raises(UserError, match=r"set source\.checkpoint, or source\.shard"):
        source_shard(settings(scenes, tmp_path, source__shard=""))


def write(folder: Path, config: RunConfig, classes: int = 8, table: ClassTable | None = None) -> Path:
    model = build_network(classes, config.network, 5)
    weights, statistics = network_to_arrays(model)
    saved = Checkpoint(
        round=1,
        head=weights | statistics,
        centroids=np.zeros((0, 0), np.float32),
        config=config,
        classes=table,
        weights_hash=network_signature(classes, config.network),
        channels=classes,
        grid=(64, 64),
    )
    save_checkpoint(checkpoint_path(folder, 1), saved)
    return folder


def test_a_pretrained_network_is_taken_as_it_is(scenes: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "saved", settings(scenes, tmp_path))
    config = settings(scenes, tmp_path, source__checkpoint=str(folder), source__shard="")
    model = build_network(8, config.network, 5)
    weights, statistics = network_to_arrays(model)
    assert same_arrays(
        pretrained_model(config, SYNTHETIC, start(config), None, tmp_path), weights | statistics
    )


@pytest.mark.parametrize(
    ("made_with", "classes", "words"),
    [
        ({}, 11, r"normalize \w+, 11 classes\) than the settings \(.* normalize \w+, 8 classes\)"),
        ({"network__output_stride": 16}, 8, r"stride 16, rates .* than the settings \(stride 32"),
        ({"network__normalize": "half"}, 8, r"normalize half, 8 classes\) than .* normalize imagenet"),
    ],
)
def test_a_network_of_another_architecture_is_refused(
    scenes: Path, tmp_path: Path, made_with: dict[str, Any], classes: int, words: str
) -> None:
    folder = write(tmp_path / "saved", settings(scenes, tmp_path, **made_with), classes)
    config = settings(scenes, tmp_path, source__checkpoint=str(folder))
    with pytest.raises(UserError, match=words):
        load_pretrained(config, SYNTHETIC)


def test_a_network_of_other_classes_of_the_same_number_is_refused(scenes: Path, tmp_path: Path) -> None:
    names = ("sky", "building", "road", "footway", *SYNTHETIC.names[4:])
    other = ClassTable("other", names, SYNTHETIC.colours)
    renamed = ClassTable("renamed", SYNTHETIC.names, SYNTHETIC.colours)
    config = settings(scenes, tmp_path, source__checkpoint=str(tmp_path / "saved"))
    write(tmp_path / "saved", settings(scenes, tmp_path), table=other)
    with pytest.raises(UserError, match=r"calls a class 'footway' \(other\) that the run calls 'pavement'"):
        load_pretrained(config, SYNTHETIC)
    write(tmp_path / "saved", settings(scenes, tmp_path), table=renamed)
    assert load_pretrained(config, SYNTHETIC)


def test_networks_that_sites_keep_to_themselves_are_no_start(scenes: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "saved", settings(scenes, tmp_path, centroids__share="none"))
    with pytest.raises(UserError, match=r"centroids\.share = 'none', whose sites have networks of their own"):
        load_pretrained(settings(scenes, tmp_path, source__checkpoint=str(folder)), SYNTHETIC)


def test_pretraining_leaves_the_global_generators_alone(scenes: Path, tmp_path: Path) -> None:
    config = settings(scenes, tmp_path)
    before = torch.get_rng_state()
    pretrained_model(config, SYNTHETIC, start(config), None, tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_the_command_refuses_a_model_that_is_pretrained_already(
    scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It used to copy it, and to say so in the log alone."""
    folder = write(tmp_path / "saved", settings(scenes, tmp_path))
    words = ["--shards", str(scenes), "--run-dir", str(tmp_path / "run"), "--set", "task=adaptation"]
    assert run_command(["server", "pretrain", *words, "--set", f"source.checkpoint={folder}"]) == 2
    said = capfd.readouterr().err
    assert said.startswith(
        f"error: source.checkpoint is {folder}, a model that is pretrained already; leave it out"
    )
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()
