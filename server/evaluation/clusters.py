"""Scores of frozen features with a head and centroids, of a run's state or a checkpoint: clusters are matched."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.checkpoint import Checkpoint
from common.data.check import check_label_files
from common.data.manifest import Shard
from common.errors import UserError
from common.evaluation.clusters import (
    Evaluation,
    apply_protocol,
    check_backbone,
    evaluate_segmenter,
    mirrored_features,
    refinement,
    seen_image,
    seen_label,
    segmenting_model,
)
from common.evaluation.correspondences import CORRESPONDENCES, correspondences
from common.evaluation.score import Score, quality, site_fields
from common.features.cache import find_cache, open_features
from common.features.source import Features
from common.models.input_size import fitted_to
from common.models.segmenter import Segmenter
from common.models.site_models import chosen_model, own_sites, unshared
from common.settings.schema import RunConfig
from common.system.atomic import atomic_write_text
from common.system.cli import progress_line
from common.system.device import choose_device, run_in_subprocess
from common.wire import Groups
from server.evaluation.scorer import (
    EVERY_SITE,
    Examples,
    Scorer,
    Scoring,
    evaluation_shard,
    known_classes,
    mapping_for,
)
from server.inference.base import refuse_cluster
from server.states import ModelState

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
        segmenting_model(fitted_to(config, shard)),
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
        model = segmenting_model(fitted_to(config, shard))
        if find_cache(shard, model, config.cache, folder, config.seed) is None:
            log.info("caching features of %s: %d images", shard.name, len(shard))
            run_in_subprocess(cache_features, config)  # this process stays small
        features = open_features(
            shard, model, config.cache, folder, device=choose_device("auto"), seed=config.seed
        )
        return cls(
            config,
            shard.classes,
            [shard],
            weights_hash=features.weights_hash,
            channels=features.channels,
            grid=features.grid,
            features=features,
        )

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
        (shard,), settings = self.shards, fitted_to(self.config, self.shards[0])
        model = segmenting_model(settings)
        segmenter = Segmenter.from_groups(groups, self.features.channels, settings, model=model)
        flip = settings.eval.flip  # features of mirrored images are computed, never cached
        device = choose_device("auto")
        return evaluate_segmenter(
            segmenter,
            self.features,
            shard,
            model,
            keep=keep,
            mirrored=mirrored_features(shard, model, settings.seed, device) if flip else None,
            refine=refinement(settings, model, settings.eval.crf),
        )

    def draw(self, run_dir: Path, round_number: int, state: ModelState) -> Path | None:
        """Draw images, and measure how well correspondences know labels where there are any."""
        if self.features is not None and self.classes is not None and not self.separate:
            (shard,), settings = self.shards, fitted_to(self.config, self.shards[0])
            model = segmenting_model(settings)
            segmenter = Segmenter.from_groups(
                state.shared_groups(), self.features.channels, settings, model=model
            )
            found = correspondences(segmenter, self.features, shard, model, settings.seed)
            if found is not None:
                atomic_write_text(run_dir / CORRESPONDENCES, json.dumps(found))
        return super().draw(run_dir, round_number, state)

    def examples(self, state: ModelState, site: str | None, chosen: Sequence[int]) -> Examples:
        """Segment the chosen images; see `Scorer`."""
        (shard,), model = self.shards, segmenting_model(fitted_to(self.config, self.shards[0]))
        groups = state.shared_groups() if site is None else state.groups_for(site)
        found = self._evaluate(groups, keep=chosen)
        labelled = self.classes is not None and found.confusion is not None
        truths = [seen_label(shard, index, model) if labelled else None for index in chosen]
        return Examples(
            [seen_image(shard, index, model) for index in chosen],
            [found.predictions[index] for index in chosen],
            truths if any(truth is not None for truth in truths) else None,
            self._score(found).mapping,
            len(found.patches),
        )


def evaluate_clusters(saved: Checkpoint, where: str, shard: Shard, how: Scoring) -> dict[str, Any]:
    """Return the quality fields of a record: of the shared model, of one site's, or of every site's by itself.

    ``where`` is the checkpoint's path, for messages. Raises `UserError` where checkpoint, shard, weights and options
    do not fit together.
    """
    refuse_cluster(saved, where, how.cluster)
    if how.site == EVERY_SITE and unshared(saved):
        return _evaluate_own_models(saved, where, shard, how)
    return _evaluate_model(chosen_model(saved, where, how.site), where, shard, how)


def _evaluate_model(saved: Checkpoint, where: str, shard: Shard, how: Scoring) -> dict[str, Any]:
    matching, seed = how.matching or saved.config.eval.matching, saved.config.seed
    if matching == "checkpoint" and saved.mapping is None:
        raise UserError(
            f"Checkpoint {where} names no classes (it was never scored); match on this shard: hungarian."
        )
    named = mapping_for(saved, shard.classes) if matching == "checkpoint" else saved.mapping
    model, upsample, score_at = apply_protocol(segmenting_model(fitted_to(saved.config, shard)), how.protocol)
    device = choose_device("auto")
    features = open_features(
        shard, model, saved.config.cache, shard.path.parent / "cache", device, seed, how.progress
    )
    check_backbone(saved, features.weights_hash, features.channels, where)
    found = evaluate_segmenter(
        Segmenter.from_checkpoint(saved, model=model, upsample=upsample).to(device),
        features,
        shard,
        model,
        score_at=score_at,
        mirrored=mirrored_features(shard, model, seed, device) if how.flip else None,
        refine=refinement(saved.config, model, how.crf),
        progress=how.progress,
    )
    return {
        "images": found.num_images,
        "labelled_images": found.num_labelled,
        **quality(found.confusion, shard.classes, matching, named),
        "mean_cosine": found.mean_cosine,
        "cluster_share": found.cluster_share,
        "entropy": found.entropy,
        "weights_sha256": features.weights_hash,
    }


def _evaluate_own_models(saved: Checkpoint, where: str, shard: Shard, how: Scoring) -> dict[str, Any]:
    """Score the model of every site by itself and return what they say together (see `site_fields`).

    What only one model has (``miou``, a confusion, names of clusters) is None; ``mean_cosine`` and ``entropy`` are
    means over sites.
    """
    found = {
        name: _evaluate_model(chosen_model(saved, where, name), where, shard, how)
        for name in own_sites(saved)
    }
    records = list(found.values())
    # several models have no common figure of these
    of_one = ("accuracy", "miou", "miou_all", "per_class_iou", "confusion", "mapping", "cluster_share")
    together = records[0] | dict.fromkeys(of_one)
    together |= dict.fromkeys(key for key in together if key.startswith("published"))
    for key in ("mean_cosine", "entropy"):
        together[key] = statistics.mean(record[key] for record in records)
    scored = {name: record for name, record in found.items() if record["miou"] is not None}
    return together | (site_fields(scored) if scored else {})
