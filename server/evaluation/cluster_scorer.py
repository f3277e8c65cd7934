"""Scorer of frozen features with a head and centroids: clusters are matched to classes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.data.check import check_label_files
from common.data.manifest import Shard
from common.evaluation.clusters import Evaluation, evaluate, mirrored_features, seen_image, seen_label
from common.evaluation.protocol import crf_refinement
from common.evaluation.score import Score
from common.features.cache import Features, open_features
from common.features.preflight import find_cache
from common.models.segmenter import Segmenter
from common.settings.schema import RunConfig
from common.system.device import choose_device
from common.system.progress import progress_line
from common.system.subprocess import run_in_subprocess
from common.wire import Groups
from server.evaluation.scorer import Examples, Scorer
from server.evaluation.shards import evaluation_shard, known_classes
from server.states.unsupervised import ModelState

log = logging.getLogger(__name__)


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
class ClusterScorer(Scorer):
    """The server's evaluation shard with its cached features, where it has one."""

    features: Features | None = None

    @classmethod
    def open(cls, config: RunConfig) -> ClusterScorer:
        """Open the shard that the settings name and cache its features; no shard: label-free figures only."""
        classes = known_classes(config)
        shard = evaluation_shard(config)
        if shard is None:
            return cls(config, classes)
        check_label_files(shard, progress_line(f"checking labels of {shard.name}"))
        folder = cache_folder(config, shard)
        if find_cache(shard, config.model, config.cache, folder, config.seed) is None:
            log.info("caching features of %s: %d images", shard.name, len(shard))
            run_in_subprocess(cache_features, config)  # this process stays small
        features = open_features(
            shard, config.model, config.cache, folder, device=choose_device("auto"), seed=config.seed
        )
        return cls(config, shard.classes, [shard], features)

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

    def score_shared(self, state: ModelState) -> Score:
        """Score the shared model; where a part is not shared and no site has its own yet, there is none."""
        return Score() if self.separate else self._score(self._evaluate(state.shared_groups()))

    def score_site(self, state: ModelState, site: str) -> Score:
        """Score one site's own model."""
        return self._score(self._evaluate(state.groups_for(site)))

    def _score(self, found: Evaluation) -> Score:
        return replace(
            Score() if found.confusion is None else self.score_counts(found.confusion),
            mean_cosine=found.mean_cosine,
            cluster_share=found.cluster_share,
            entropy=found.entropy,
        )

    def _evaluate(self, groups: Groups, keep: Collection[int] = ()) -> Evaluation:
        assert self.features is not None
        (shard,), settings = self.shards, self.config
        segmenter = Segmenter.from_arrays(
            groups["head"], groups["centroids"]["centroids"], self.features.channels, settings.model
        )
        flip = settings.eval.flip  # features of mirrored images are computed, never cached
        device = choose_device("auto")
        return evaluate(
            segmenter,
            self.features,
            shard,
            settings.model,
            keep=keep,
            mirrored=mirrored_features(shard, settings.model, settings.seed, device) if flip else None,
            refine=crf_refinement() if settings.eval.crf else None,
        )

    def examples(self, state: ModelState, site: str | None, chosen: Sequence[int]) -> Examples:
        """Segment the chosen images; see `Scorer`."""
        (shard,), model = self.shards, self.config.model
        groups = state.shared_groups() if site is None else state.groups_for(site)
        found = self._evaluate(groups, keep=chosen)
        labelled = self.classes is not None and found.confusion is not None
        truths = [seen_label(shard, index, model) if labelled else None for index in chosen]
        return Examples(
            [seen_image(shard, index, model) for index in chosen],
            [found.predictions[index] for index in chosen],
            truths if any(truth is not None for truth in truths) else None,
            self._score(found).mapping,
            len(groups["centroids"]["centroids"]),
        )
