"""Does a site score the received model as the server would: mirrored and refined where the settings say so?"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from client.site import SiteConfig
from client.statistics import cluster_sums
from client.work.base import site_task
from common import wire
from common.checkpoint import Checkpoint, load_checkpoint
from common.data.manifest import read_shard, write_manifest
from common.evaluation.clusters import evaluate_segmenter, mirrored_features
from common.evaluation.crf import refine
from common.features.cache import open_features
from common.models.segmenter import Segmenter
from common.settings.load import to_wire
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
