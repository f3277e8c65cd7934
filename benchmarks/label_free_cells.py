"""How each cell of `benchmarks/label_free.py` is computed: methods, baselines and ceilings on one set and seed."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from federation import Fit, all_codes, fit, load_fit, open_sites, save_fit
from label_free_sets import ImageSet, shared_keys, site_names, test_shard

from common.clustering.kmeans import farthest_first, spherical_kmeans
from common.data.manifest import Shard
from common.evaluation.clusters import evaluate_segmenter, refinement, seen_label, segmenting_model
from common.evaluation.metrics import Confusion
from common.features.cache import open_features
from common.models.input_size import fitted_to
from common.models.segmenter import Segmenter
from common.seeds import numpy_generator
from common.settings.schema import RunConfig
from server.centroids.base import CENTROID_RULES, RuleInput, SiteRows, stack_sites
from server.tasks.base import load_settings

STARTS, PASSES = 6, 20
OVER = 40  # clusters that the oracle names, and that label-free joins

_STEPS = {"rounds": 20, "local.steps": 30, "sites.per-round": 2, "local.batch": 8, "model.dim": 70}
_STEPS |= {"centroids.merge": "mean", "centroids.polish-passes": 0}
OBJECTIVES: Mapping[str, dict[str, Any]] = {
    "principal": {"loss.objective": "principal", "model.dim": 256, "rounds": 2, "centroids.starts": 2},
    "spectral": {"loss.objective": "spectral", "rounds": 2},
    "correspondence": _STEPS | {"loss.objective": "correspondence", "loss.correspondence.shift": "auto"},
    "smoothness": _STEPS | {"loss.objective": "smoothness"},
    "modularity": _STEPS | {"loss.objective": "modularity"},
}
# how the merged centroids of the published rules come about: in the raw space, without counts
_RAW = {"centroids.spherical": False, "centroids.weighted": False, "centroids.keep-index": False}
RULES: Mapping[str, dict[str, Any]] = {
    "mean": {"centroids.merge": "mean"},
    "FedCC k-means": _RAW | {"centroids.merge": "fedcc-kmeans"},
    "FedCC k-means, counts": {"centroids.merge": "fedcc-kmeans"},
    "FedCC maximin": _RAW | {"centroids.merge": "fedcc-maximin"},
    "matched": {"centroids.merge": "matched"},
}


@dataclass(frozen=True)
class Place:
    """Where a cell computes: its set, its seed, and the command's options; ``without`` is a site left out."""

    chosen: ImageSet
    seed: int
    asked: argparse.Namespace
    without: int | None = None

    @property
    def folder(self) -> Path:
        """The shards of the set."""
        return Path(self.asked.shards) / self.chosen.name

    def settings(self, keys: Mapping[str, Any]) -> RunConfig:
        """Return the settings of a row."""
        given = {"preset": keys["preset"]} if "preset" in keys else {}
        shared = shared_keys(self.chosen, self.folder, self.asked.weights, self.seed)
        return load_settings(given | shared | dict(keys))

    @property
    def state(self) -> Path:
        """What sites keep between rounds of one fit."""
        return Path(self.asked.out) / f"state-{self.chosen.name}-{os.getpid()}"

    def fit(self, config: RunConfig) -> Fit:
        """Run a federation over the set's sites."""
        numbers = [n for n in range(len(site_names(self.folder))) if n != self.without]
        try:
            return fit(config, open_sites(config, numbers, self.state))
        finally:
            shutil.rmtree(self.state, ignore_errors=True)


Found = dict[str, Any]


def count(predictions: Mapping[int, np.ndarray], shard: Shard, config: RunConfig, clusters: int) -> Found:
    """Return counts [clusters, classes] by domain of maps by image."""
    assert shard.classes is not None
    model = fitted_to(config, shard).model
    found: dict[str, Confusion] = {}
    for index, predicted in predictions.items():
        label = seen_label(shard, index, model)
        assert label is not None
        domain = shard.entries[index].domain or ""
        found.setdefault(domain, Confusion(clusters, shard.classes.num_classes)).update(predicted, label)
    return {"domains": {name: one.to_list() for name, one in found.items()}}


def segmented(place: Place, config: RunConfig, groups: Any, fine: bool = True) -> Found:
    """Segment the test images by a model and count; without ``fine`` maps are not refined by colors."""
    shard = test_shard(place.folder)
    fitted = fitted_to(config, shard)
    model = segmenting_model(fitted)
    features = open_features(shard, model, config.cache, place.folder / "cache")
    segmenter = Segmenter.from_groups(groups, features.channels, fitted, model=model)
    found = evaluate_segmenter(
        segmenter,
        features,
        shard,
        model,
        refine=refinement(fitted, model, False) if fine else None,
        keep=range(len(shard)),
    )
    return count(found.predictions, shard, config, segmenter.num_clusters)


def label_free(place: Place) -> Found:
    """Run recipe `label-free`; every start is scored as well, by maps that are not refined."""
    config = place.settings(
        {"preset": "label-free", "rounds": PASSES + 1, "things.each-picture": place.chosen.each_picture}
        | {"refine.stride": 8}
    )
    state = place.fit(config).state
    found = segmented(place, config, state.shared_groups())
    if place.without is None:
        found["starts"] = []
        for start, groups in zip(state.starts["centroids"], state.starts["groups"], strict=True):
            centroids = {"centroids": start, "groups": groups, "centered": state.joined["centered"]}
            part = segmented(place, config, {"head": state.head, "centroids": centroids}, fine=False)
            found["starts"].append(part["domains"])
    return found


def oracle(place: Place) -> Found:
    """Find clusters as `label-free` does, smoothed and fine; the labels name every one of them."""
    keys = {"preset": "label-free", "rounds": PASSES + 1, "codes.center": "none", "centroids.over": 0}
    config = place.settings(keys | {"model.clusters": OVER, "refine.stride": 8})
    return segmented(place, config, place.fit(config).state.shared_groups())


def published(place: Place) -> Found:
    """Run preset `fuss-ref` as it is, on the features of the other rows: 10 rounds of 60 steps."""
    keys = {"preset": "fuss-ref", "rounds": 10, "local.steps": 60, "sites.per-round": 2}
    config = place.settings(keys)
    return segmented(place, config, place.fit(config).state.shared_groups())


def trained(place: Place, objective: str, rate: float) -> tuple[RunConfig, Fit]:
    """Return a trained head with what its sites sent last; rows share it."""
    keys = OBJECTIVES[objective] | ({"local.lr": rate} if rate else {})
    config = place.settings(keys)
    path = Path(place.asked.out) / "heads" / place.chosen.name / f"{objective}-{rate:g}-{place.seed}.npz"
    if not path.is_file():
        save_fit(path, place.fit(config))
    return config, load_fit(path)


_held: dict[tuple[object, ...], np.ndarray] = {}  # of the last head: its rows follow each other


def _codes(place: Place, objective: str, rate: float) -> np.ndarray:
    key = (place.chosen.name, place.seed, objective, rate)
    if key not in _held:
        config, found = trained(place, objective, rate)
        sites = open_sites(config, range(len(site_names(place.folder))), place.state)
        _held.clear()
        _held[key] = all_codes(config, found.state, sites)
    return _held[key]


def clustered(place: Place, objective: str, start: str, rate: float = 0.0) -> Found:
    """Take 20 exact passes from a rule's centroids, or from the most compact of six starts, and score.

    Every one of the six is scored too.
    """
    config, found = trained(place, objective, rate)
    codes = _codes(place, objective, rate)
    clusters = config.model.clusters
    if start in RULES:
        settings = place.settings(OBJECTIVES[objective] | RULES[start]).centroids
        rows = {
            name: SiteRows(update.groups["centroids"]["centroids"], update.groups["centroids"]["counts"])
            for name, update in found.updates.items()
        }
        current = found.state.centroids
        merged = CENTROID_RULES.get(settings.merge)(RuleInput(current, stack_sites(rows, current), settings))
        starts = [merged.centroids]
    elif start == "maximin":
        drawn = numpy_generator(place.seed, "maximin").permutation(len(codes))[:STARTS]
        starts = [codes[farthest_first(codes, clusters, int(first), spherical=True)] for first in drawn]
    else:
        starts = [None] * STARTS
    fits = [
        spherical_kmeans(
            codes,
            clusters,
            1000 * place.seed + number,
            iterations=PASSES,
            tolerance=0.0,
            restarts=1,
            start=one,
        )
        for number, one in enumerate(starts)
    ]
    parts = [
        segmented(place, config, {"head": found.state.head, "centroids": {"centroids": one.centres}})
        for one in fits
    ]
    best = int(np.argmax([one.mean_cosine for one in fits]))
    return parts[best] | {"starts": [part["domains"] for part in parts]}


def reference(place: Place, of: Callable[..., Any]) -> Found:
    """Count what a method without clusters of codes predicts."""
    config, shard = place.settings(OBJECTIVES["principal"]), test_shard(place.folder)
    sites = open_sites(config, range(len(site_names(place.folder))), place.state)
    predictions, outputs = of(config, shard, [site.load_shard() for site in sites.values()], place.seed)
    return count(predictions, shard, config, outputs)
