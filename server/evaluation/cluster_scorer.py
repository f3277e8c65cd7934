"""How good is the model of a round, on a labelled shard that nobody trains on?"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.data.check import check_labels
from common.data.classes import ClassTable
from common.data.manifest import Shard
from common.evaluation.clusters import (
    Evaluation,
    Mirrored,
    evaluate,
    mirrored_features,
    seen_image,
    seen_label,
)
from common.evaluation.metrics import Confusion
from common.evaluation.protocol import crf_refinement
from common.evaluation.score import Score, scored
from common.features.cache import Features, open_features
from common.features.preflight import find_cache
from common.models.segmenter import Segmenter
from common.settings.schema import RunConfig
from common.system.device import choose_device
from common.system.progress import progress_line
from common.system.subprocess import run_apart
from common.wire import Groups
from server.evaluation.shards import evaluation_shard, known_classes
from server.states.unsupervised import ModelState, own_groups

log = logging.getLogger(__name__)

PICTURES = 4


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
        from server.report.pictures import write_pictures

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
