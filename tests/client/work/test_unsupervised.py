"""Does a site score a received model as the server would, and keep plain sums of few images to itself?"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.site import SiteConfig
from client.statistics import cluster_sums
from client.work.base import site_task
from client.work.oracle import label_signal
from common import wire
from common.checkpoint import Checkpoint, load_checkpoint
from common.data.manifest import read_shard, write_manifest
from common.errors import UserError
from common.evaluation.clusters import evaluate_segmenter, mirrored_features
from common.evaluation.crf import refine
from common.features.cache import open_features
from common.models.segmenter import Segmenter
from common.settings.load import load_config, to_wire
from tests.support.checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def here(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> SiteConfig:
    """A site with two labelled images, whose cache all tests share."""
    folder = tmp_path_factory.mktemp("site")
    pictures = read_shard(scenes / "eval.jsonl")
    shutil.copy(scenes / "partition.json", folder)
    write_manifest(folder / "two.jsonl", pictures.entries[:2])
    manifest = folder / "two.jsonl"
    return SiteConfig(
        name="a",
        shards=(manifest,),
        eval_shard=manifest,
        data_root=pictures.root,
        cache_dir=folder / "cache",
        state_dir=folder,
        device="cpu",
        simulated=True,
    )


def counted(saved: Checkpoint, here: SiteConfig, **given: bool) -> np.ndarray:
    config = saved.config.model_copy(update={"eval": saved.config.eval.model_copy(update=given)})
    groups: wire.Groups = {"head": saved.head, "centroids": {"centroids": saved.centroids}}
    found = site_task(config).evaluate(wire.Task(1, to_wire(config), "run", groups), config, here)
    return found.groups["confusion"]["confusion"]


@pytest.mark.parametrize("way", ["plain", "flip", "crf"])
def test_a_site_counts_what_the_settings_ask_for(saved: Checkpoint, here: SiteConfig, way: str) -> None:
    shard = here.load_eval_shard()
    assert shard is not None
    model = saved.config.model
    features = open_features(shard, model, saved.config.cache, here.cache_dir, device="cpu", seed=0)
    expected = evaluate_segmenter(
        Segmenter.from_checkpoint(saved),
        features,
        shard,
        model,
        mirrored=mirrored_features(shard, model, 0) if way == "flip" else None,
        refine=refine if way == "crf" else None,
    )
    assert expected.confusion is not None
    found = counted(saved, here, **({} if way == "plain" else {way: True}))
    np.testing.assert_array_equal(found, expected.confusion.matrix)
    if way != "plain":
        assert not np.array_equal(found, counted(saved, here))


def test_the_server_asks_for_sums_by_name(saved: Checkpoint, here: SiteConfig) -> None:
    groups: wire.Groups = {"head": saved.head, "centroids": {"centroids": saved.centroids}}

    def answer(what: str) -> wire.Update:
        task = wire.Task(1, to_wire(saved.config), "run", groups, {"what": what})
        return site_task(saved.config).sums(task, saved.config, here)

    shard = here.load_shard()
    features = open_features(
        shard, saved.config.model, saved.config.cache, here.cache_dir, device="cpu", seed=0
    )
    expected = cluster_sums(features, saved.head, saved.centroids, saved.config)
    found = answer("clusters")
    assert set(found.groups["sums"]) == {"sums", "counts", "cosines"}
    np.testing.assert_array_equal(found.groups["sums"]["sums"], expected.sums)
    assert found.metrics == {} and found.facts == {"images": 2}
    with pytest.raises(ValueError, match="a was asked for sums of 'labels'"):
        answer("labels")


def asked(here: SiteConfig, action: str, own: dict[str, Any] | None = None, **settings: Any) -> wire.Update:
    """Return a site's answer to the first round of the closed form, or to its greeting."""
    here = here.model_copy(update={"simulated": False} | (own or {}))
    config = load_config(settings | {"model.weights": "random", "model.height": 65, "model.width": 97})
    task = wire.Task(1, to_wire(config), "run", options={"phase": "scatter"})
    return getattr(site_task(config), action)(task, config, here)


@pytest.mark.parametrize("action", ["hello", "train"])
def test_a_deployed_site_of_few_images_sends_no_plain_sum(here: SiteConfig, action: str) -> None:
    with pytest.raises(UserError, match=r"holds 2 images .*fewer than 30 .*secure-sum"):
        asked(here, action)
    assert asked(here, action, **{"privacy.minimum-images": 2}).facts["images"] == 2
    with pytest.raises(UserError, match="fewer than 5"):  # the site's own word wins
        asked(here, action, {"minimum_images": 5}, **{"privacy.minimum-images": 0})
    assert asked(here, action, {"simulated": True}).facts["images"] == 2


def test_secure_sums_lift_the_minimum(here: SiteConfig) -> None:
    assert asked(here, "hello", **{"privacy.secure-sum": True}).facts["images"] == 2


def test_a_pass_of_k_means_and_masks_are_sums_too(here: SiteConfig, saved: Checkpoint) -> None:
    here = here.model_copy(update={"simulated": False})
    config = load_config({"preset": "fuss-clean", "model.weights": "random"})
    config = config.model_copy(update={"model": saved.config.model})
    groups: wire.Groups = {"head": saved.head, "centroids": {"centroids": saved.centroids}}
    task = wire.Task(1, to_wire(config), "run", groups, {"what": "clusters"})
    with pytest.raises(UserError, match=r"privacy\.minimum-images"):
        site_task(config).sums(task, config, here)
    student = load_config({"task": "student"})
    with pytest.raises(UserError, match=r"privacy\.minimum-images"):
        site_task(student).sums(wire.Task(1, to_wire(student), "run"), student, here)


def test_the_oracle_agrees_with_labels_in_simulations_alone(here: SiteConfig) -> None:
    settings = {"preset": "fuss-clean", "loss.correspondence.signal": "labels", "model.weights": "random"}
    config = load_config(settings | {"model.height": 65, "model.width": 97})
    signal = label_signal(here, config, (5, 7))
    shard = here.load_shard()
    assert shard.classes is not None and signal.shape == (2, 35, shard.classes.num_classes + 1)
    np.testing.assert_allclose(signal.sum(axis=2), 1.0, rtol=1e-5)
    with pytest.raises(UserError, match=r"signal is 'labels', which simulations alone"):
        label_signal(here.model_copy(update={"simulated": False}), config, (5, 7))
