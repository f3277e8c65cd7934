"""Scores of a student, of a run's state or a checkpoint: its outputs are clusters, and are matched like clusters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.checkpoint import Checkpoint
from common.data.check import check_label_files
from common.data.classes import cluster_table
from common.data.images import entry_image, entry_label
from common.data.manifest import Shard
from common.errors import UserError
from common.evaluation.certainty import count_clusters
from common.evaluation.clusters import Evaluation
from common.evaluation.networks import predict_pixels
from common.evaluation.score import Score, quality
from common.models.network import network_signature
from common.settings.schema import RunConfig
from common.system.cli import progress_line
from common.system.device import choose_device
from common.wire import Arrays
from server.evaluation.scorer import (
    Examples,
    Scorer,
    Scoring,
    evaluation_shard,
    known_classes,
    mapping_for,
)
from server.inference.networks import StudentPredictor, network_of
from server.states import NetworkState


@dataclass
class StudentScorer(Scorer):
    """The server's evaluation shard, where it has one; without labels there are label-free figures."""

    device: str = "cpu"

    @classmethod
    def open(cls, config: RunConfig) -> StudentScorer:
        """Open the shard that the settings name."""
        classes, shard = known_classes(config), evaluation_shard(config)
        if shard is None:
            return cls(config, classes)
        check_label_files(shard, progress_line(f"checking labels of {shard.name}"))
        clusters = config.model.clusters
        signature = network_signature(clusters, config.network)
        device = str(choose_device("auto"))
        return cls(config, shard.classes, [shard], weights_hash=signature, channels=clusters, device=device)

    def score_shared(self, state: NetworkState) -> Score:
        """Score the shared network."""
        return self._score(self._evaluate(state.model))

    def score_site(self, state: NetworkState, site: str) -> Score:
        """Score one site's own network."""
        return self._score(self._evaluate(state.model_for(site)))

    def _score(self, found: Evaluation) -> Score:
        score = Score() if found.confusion is None else self.score_counts(found.confusion)
        return replace(score, cluster_share=found.cluster_share, entropy=found.entropy)

    def _evaluate(
        self, model: Arrays, keep: Collection[int] = (), order: Collection[int] | None = None
    ) -> Evaluation:
        (shard,), config = self.shards, self.config
        network = network_of(config, cluster_table(config.model.clusters), model).to(self.device)
        return count_clusters(
            lambda image: predict_pixels(network, image, config.transforms, flip=config.eval.flip),
            shard,
            config.model.clusters,
            keep=keep,
            order=order,
        )

    def examples(self, state: NetworkState, site: str | None, chosen: Sequence[int]) -> Examples:
        """Segment the chosen images; see `Scorer`. Clusters get the names that all images give them."""
        (shard,) = self.shards
        model = state.model if site is None else state.model_for(site)
        found = self._evaluate(model, keep=chosen)
        table = shard.classes if found.confusion is not None else None
        truths = [None if table is None else entry_label(shard, index, table) for index in chosen]
        return Examples(
            [entry_image(shard, index) for index in chosen],
            [found.predictions[index] for index in chosen],
            truths if any(truth is not None for truth in truths) else None,
            self._score(found).mapping,
            self.config.model.clusters,
        )


def evaluate_student(saved: Checkpoint, where: str, shard: Shard, how: Scoring) -> dict[str, Any]:
    """Return the quality fields of a record; clusters are matched to the shard's classes, or named as in the run.

    Raises `UserError` where checkpoint, shard and options do not fit together.
    """
    matching = how.matching or saved.config.eval.matching
    if matching == "checkpoint" and saved.mapping is None:
        raise UserError(
            f"Checkpoint {where} names no classes (it was never scored); match on this shard: hungarian."
        )
    if how.protocol != "label-size":
        raise UserError(
            f"--protocol {how.protocol} was given, but {where} holds a whole network; it is scored at label-size."
        )
    known = mapping_for(saved, shard.classes) if matching == "checkpoint" else saved.mapping
    predictor = StudentPredictor(saved, where, "auto", how.cluster, how.site)
    found = count_clusters(
        lambda image: predictor.labels(image, flip=how.flip, crf=how.crf),
        shard,
        predictor.classes.num_classes,
        progress=how.progress,
    )
    return {
        "images": found.num_images,
        "labelled_images": found.num_labelled,
        **quality(found.confusion, shard.classes, matching, known),
        "mean_cosine": None,
        "cluster_share": found.cluster_share,
        "entropy": found.entropy,
        "weights_sha256": saved.weights_hash,
    }
