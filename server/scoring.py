"""How good is the model of a round, on a labelled shard that nobody trains on?"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.apart import run_apart
from common.command import progress_line
from common.config import RunConfig
from common.data.check import check_labels
from common.data.classes import ClassTable, load_table
from common.data.manifest import Shard, read_partition, read_shard
from common.device import choose_device
from common.errors import UserError
from common.evaluate import Evaluation, Mirrored, evaluate, mirrored_features, seen_image, seen_label
from common.features import Features, open_features
from common.metrics import Confusion, Matching, match, scores
from common.preflight import find_cache
from common.segmenter import Segmenter
from common.wire import Groups
from server.evaluate_clusters import crf_refinement
from server.model_state import ModelState, own_groups
from server.site_scores import site_fields

log = logging.getLogger(__name__)

PICTURES = 4


@dataclass
class Score:
    """What scoring found; empty where nothing was scored. All qualities are fractions.

    Where sites keep models of their own there is no common model to score: ``sites`` holds one mIoU for
    each of theirs, which is never presented as the mIoU of a model.
    """

    accuracy: float | None = None
    miou: float | None = None
    miou_all: float | None = None
    per_class_iou: dict[str, float | None] | None = None
    mapping: list[int] | None = None
    confusion: list[list[int]] | None = None
    mean_cosine: float | None = None
    cluster_share: list[float] | None = None
    entropy: float | None = None
    sites: dict[str, float] = field(default_factory=dict)
    site_accuracy: dict[str, float] = field(default_factory=dict)
    site_classes: dict[str, dict[str, float | None]] = field(default_factory=dict)
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add_site(self, name: str, one: Score) -> None:
        """Take in the score of one site's model, where there were labels to score it by."""
        if one.miou is not None and one.accuracy is not None:
            self.sites[name], self.site_accuracy[name] = one.miou, one.accuracy
            self.site_classes[name] = one.per_class_iou or {}

    def fields(self) -> dict[str, Any]:
        """Return the quality fields of a metrics line."""
        found: dict[str, Any] = {
            "accuracy": self.accuracy,
            "miou": self.miou,
            "miou_all": self.miou_all,
            "per_class_iou": self.per_class_iou,
        }
        rest = {"confusion": self.confusion, "mapping": self.mapping, "entropy": self.entropy}
        found |= {key: value for key, value in rest.items() if value is not None}
        if self.sets:
            found["sets"] = self.sets
        if self.cluster_share is not None:
            found["cluster_share"] = self.cluster_share
        if self.sites:
            found |= site_fields(self.sites, self.site_accuracy, self.site_classes)
        return found

    def words(self) -> list[str]:
        """Return what a progress line says."""
        if len(self.sets) > 1 or any("cluster_miou" in record for record in self.sets.values()):
            return [word for name, record in self.sets.items() for word in _set_words(name, record)]
        if self.miou is not None:
            return [f"mIoU {self.miou:.3f}", f"accuracy {self.accuracy:.3f}"]
        if self.sites:
            mean, spread = statistics.mean(self.sites.values()), statistics.pstdev(self.sites.values())
            return [f"mIoU of the sites' own models {mean:.3f} +- {spread:.3f}"]
        return [] if self.mean_cosine is None else [f"mean cosine {self.mean_cosine:.3f}"]


def _set_words(name: str, record: Mapping[str, Any]) -> list[str]:
    """Return what a progress line says of one test set."""
    if record["miou"] is None:
        return [f"{name} has no labelled pixel"]
    words = f"{name} mIoU {record['miou']:.3f}"
    return [words + (f" (clusters {record['cluster_miou']:.3f})" if "cluster_miou" in record else "")]


def scored(confusion: Confusion, classes: ClassTable, how: Matching) -> Score:
    """Match clusters to classes once, on the summed counts, and score; without any count there is no score."""
    if not confusion.total:
        return Score()
    mapping = match(confusion, how)
    found = scores(confusion, mapping)
    return Score(
        accuracy=found.accuracy,
        miou=found.miou,
        miou_all=found.miou_all,
        per_class_iou=dict(zip(classes.names, found.per_class_iou, strict=True)),
        mapping=[int(c) for c in mapping],
        confusion=confusion.to_list(),
    )


def known_classes(config: RunConfig) -> ClassTable | None:
    """Return the class table that the settings, or the shards folder, name.

    Raises `UserError` where there is none though the sites are to count confusions.
    """
    if config.eval.classes:
        return load_table(config.eval.classes)
    folder = Path(config.simulation.shards) if config.simulation.shards else None
    classes = None
    if folder is not None and (folder / "partition.json").is_file():
        classes = read_partition(folder).classes
    if config.eval.where == "sites" and classes is None:
        raise UserError("eval.where is 'sites' but no class table is known; name one by eval.classes.")
    return classes


def evaluation_shard(config: RunConfig) -> Shard | None:
    """Read the manifest that the server scores on; a relative path may start in the shards folder."""
    if config.eval.where != "server" or not config.eval.shard:
        return None
    return scored_shard(config.eval.shard, config)


def scored_shard(name: str, config: RunConfig) -> Shard:
    """Read a manifest of ``eval.shard``; its labels mean what its own class table says, where it has one.

    ``eval.classes`` serves those that have none: two data sets write the same classes by different raw values.
    Raises `UserError` where both are there and name other classes.
    """
    path = Path(name)
    if config.simulation.shards and not path.is_absolute() and not path.is_file():
        path = Path(config.simulation.shards) / path
    table = load_table(config.eval.classes) if config.eval.classes else None
    shard = read_shard(path, config.simulation.data_root or None)
    own = shard.classes
    if own is None or table is None:
        return replace(shard, classes=own or table)
    if own.names != table.names:
        raise UserError(
            f"{path} has the classes of table '{own.name}' but eval.classes is '{config.eval.classes}', whose names "
            "are others; leave eval.classes empty, or make the shards with that table."
        )
    return shard


def cache_folder(config: RunConfig, shard: Shard) -> Path:
    """Return where the server keeps the features of its evaluation shard."""
    return Path(config.simulation.cache) if config.simulation.cache else shard.path.parent / "cache"


def cache_features(config: RunConfig) -> None:
    """Make the feature cache of the evaluation shard, with progress on the terminal."""
    shard = evaluation_shard(config)
    assert shard is not None
    open_features(
        shard,
        config.model,
        config.cache,
        cache_folder(config, shard),
        device=choose_device("auto"),
        seed=config.seed,
        progress=progress_line(f"caching features of {shard.name}"),
    )


@dataclass
class Scorer:
    """The server's evaluation shard with its cached features, where it has one."""

    config: RunConfig
    classes: ClassTable | None = None
    shard: Shard | None = None
    features: Features | None = None

    @classmethod
    def open(cls, config: RunConfig) -> Scorer:
        """Open the shard that the settings name and cache its features; no shard: label-free figures only."""
        classes = known_classes(config)
        shard = evaluation_shard(config)
        if shard is None:
            return cls(config, classes)
        check_labels(shard, progress_line(f"checking labels of {shard.name}"))
        folder = cache_folder(config, shard)
        if find_cache(shard, config.model, config.cache, folder, config.seed) is None:
            log.info("caching features of %s: %d images", shard.name, len(shard))
            run_apart(cache_features, config)  # this process stays small
        features = open_features(
            shard, config.model, config.cache, folder, device=choose_device("auto"), seed=config.seed
        )
        return cls(config, shard.classes, shard, features)

    @property
    def split(self) -> str | None:
        """Name of the scored shard."""
        if self.shard is None:
            return "sites" if self.config.eval.where == "sites" else None
        return self.shard.name

    @property
    def weights_hash(self) -> str:
        """Hash of the server's own backbone; empty where it has none."""
        return "" if self.features is None else self.features.weights_hash

    @property
    def channels(self) -> int:
        """Channels of the server's own features; 0 where it has none."""
        return 0 if self.features is None else self.features.channels

    @property
    def grid(self) -> tuple[int, int] | None:
        """Grid of the server's own features."""
        return None if self.features is None else self.features.grid

    def score(self, state: ModelState) -> Score:
        """Score the shared model, or each site's own where they are not shared."""
        if self.features is None or self.shard is None:
            return Score()
        if not own_groups(self.config):  # under 'keep-least-moved' a site has its own beside the shared model
            return self._score_one(self._evaluate(state.shared_groups()))
        result = Score()
        for name in sorted(state.own):
            result.add_site(name, self._score_one(self._evaluate(state.groups_for(name))))
        return result

    def _score_one(self, found: Evaluation) -> Score:
        score = Score()
        if found.confusion is not None and self.classes is not None:
            score = scored(found.confusion, self.classes, self.config.eval.matching)
        return replace(
            score, mean_cosine=found.mean_cosine, cluster_share=found.cluster_share, entropy=found.entropy
        )

    def score_confusions(self, confusions: Mapping[str, np.ndarray]) -> Score:
        """Sum the sites' matrices in the order of their names and match once.

        Clusters of models that are not the same have nothing but their numbers in common: where sites keep parts
        of their own, every matrix is matched and scored by itself.
        """
        if not confusions or self.classes is None:
            return Score()
        if own_groups(self.config):
            result = Score()
            for name in sorted(confusions):
                counts = Confusion.from_list(confusions[name].tolist())
                result.add_site(name, scored(counts, self.classes, self.config.eval.matching))
            return result
        total = sum((confusions[name].astype(np.int64) for name in sorted(confusions)), start=np.int64(0))
        if self.config.privacy.minimum_count and not np.any(total):
            log.warning(
                "no score: no count of any site reaches privacy.minimum-count %d",
                self.config.privacy.minimum_count,
            )
            return Score()
        return scored(
            Confusion.from_list(np.asarray(total).tolist()), self.classes, self.config.eval.matching
        )

    def _evaluate(self, groups: Groups, keep: Collection[int] = ()) -> Evaluation:
        assert self.features is not None and self.shard is not None
        segmenter = Segmenter.from_arrays(
            groups["head"], groups["centroids"]["centroids"], self.features.channels, self.config.model
        )
        return evaluate(
            segmenter,
            self.features,
            self.shard,
            self.config.model,
            keep=keep,
            mirrored=self._mirrored(),
            refine=crf_refinement() if self.config.eval.crf else None,
        )

    def _mirrored(self) -> Mirrored | None:
        """Return where features of mirrored images come from (``eval.flip``): computed, never cached."""
        if not self.config.eval.flip or self.shard is None:
            return None
        return mirrored_features(self.shard, self.config.model, self.config.seed, choose_device("auto"))

    def draw(self, run_dir: Path, round_number: int, state: ModelState) -> Path | None:
        """Draw a few evaluation images, their prediction and truth; sites' own models are shown by the first."""
        if self.features is None or self.shard is None:
            return None
        from server.report_pictures import write_pictures

        shard = self.shard
        count = min(PICTURES, len(shard))
        chosen = [round(i * (len(shard) - 1) / max(count - 1, 1)) for i in range(count)]
        own = own_groups(self.config) and state.own
        groups = state.groups_for(min(state.own)) if own else state.shared_groups()
        found = self._evaluate(groups, keep=chosen)
        labelled = self.classes is not None and found.confusion is not None
        truths = [seen_label(shard, index, self.config.model) if labelled else None for index in chosen]
        return write_pictures(
            run_dir,
            round_number,
            [seen_image(shard, index, self.config.model) for index in chosen],
            [found.predictions[index] for index in chosen],
            truths if any(truth is not None for truth in truths) else None,
            self.classes,
            self._score_one(found).mapping,
            num_clusters=len(groups["centroids"]["centroids"]),
        )
