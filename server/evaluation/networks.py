"""Scores of whole networks, of a run's state or a checkpoint, on labelled shards that nobody trains on.

Several test sets are scored side by side and never mixed. Where sites are clustered by style, a test image is
also given to the network of the nearest cluster, by the image's own style: both scores stand in the record.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from common.checkpoint import Checkpoint
from common.data.check import check_labelled, check_truth
from common.data.classes import ClassTable
from common.data.images import Bytes, entry_image, entry_pair
from common.data.manifest import Shard
from common.errors import UserError
from common.evaluation.metrics import MatchRule
from common.evaluation.networks import NetworkEvaluation, count_agreement, evaluate_network
from common.evaluation.score import Score, quality, scored
from common.models.network import SegmentationNetwork, network_signature
from common.models.site_models import refuse_site
from common.order import natural_key
from common.settings.schema import RunConfig
from common.styles.style import extract_style, style_kind
from common.system.device import choose_device
from common.wire import Arrays
from server.evaluation.scorer import Examples, Scorer, Scoring, evaluation_shards, run_classes
from server.inference.base import checkpoint_classes
from server.inference.networks import NetworkPredictor, network_of
from server.states import NetworkState


def set_fields(found: NetworkEvaluation, table: ClassTable) -> dict[str, Any]:
    """Return the record of one test set: its qualities, and the spread over its known domains and sites."""
    record = quality(found.confusion, table, "identity")
    # these are told of the first set alone, or are no scores
    others = ("pixels", "miou_all", "confusion", "mapping", "matching", "classes")
    fields = {key: value for key, value in record.items() if key not in others}
    return fields | {"images": found.num_images} | spread_fields(found, table)


def spread_fields(found: NetworkEvaluation, table: ClassTable) -> dict[str, Any]:
    """Return mIoU by known domain and by site, where there are several, and mean and deviation of both."""
    record: dict[str, Any] = {}
    for kind, parts in (("domain", found.domains), ("site", found.sites)):
        if len(parts) > 1:
            each = {
                name: scored(parts[name], table, "identity").miou for name in sorted(parts, key=natural_key)
            }
            values = [value for value in each.values() if value is not None]  # None: all of it is ignored
            record[f"{kind}_miou"] = each
            if values:
                record |= {
                    f"{kind}_miou_mean": statistics.mean(values),
                    f"{kind}_miou_std": statistics.pstdev(values),
                }
    return record


@dataclass
class NetworkScorer(Scorer):
    """The server's labelled shards; ``styles`` remembers those of the test images, by shard."""

    styles: dict[str, list[np.ndarray]] = field(default_factory=dict)
    device: str = "cpu"
    sums_sites: ClassVar[bool] = True

    @classmethod
    def open(cls, config: RunConfig) -> NetworkScorer:
        """Open the shards that the settings name."""
        shards = evaluation_shards(config)
        table = run_classes(config, shards)
        if table is None:
            return cls(config, table, shards)
        for shard in shards:  # of a real run, nobody else looks before the first round is over
            check_labelled(shard, table, "the run is scored on it")
            check_truth(shard)
        signature = network_signature(table.num_classes, config.network)
        return cls(
            config,
            table,
            shards,
            weights_hash=signature,
            channels=table.num_classes,
            device=str(choose_device("auto")),
        )

    @property
    def matching(self) -> MatchRule:
        """Outputs are classes, in their order."""
        return "identity"

    def score_shared(self, state: NetworkState) -> Score:
        """Score the shared network on every set, and the clusters' networks beside it."""
        if self.classes is None:
            return Score()
        first: Score | None = None
        sets: dict[str, Any] = {}
        for shard in self.shards:
            found = self.evaluate(state.model, shard)
            record = set_fields(found, self.classes)
            if state.clusters:
                clustered = self.evaluate_clusters(state, shard)
                score = self.score_counts(clustered.confusion)
                record |= {"cluster_miou": score.miou, "cluster_per_class_iou": score.per_class_iou}
                record |= {f"cluster_{k}": v for k, v in spread_fields(clustered, self.classes).items()}
            sets[shard.name] = record
            first = first or self.score_counts(found.confusion)
        assert first is not None
        return replace(first, sets=sets)

    def score_site(self, state: NetworkState, site: str) -> Score:
        """Score one site's own network on the first set."""
        return self.score_counts(self.evaluate(state.model_for(site), self.shards[0]).confusion)

    def _network(self, model: Arrays) -> SegmentationNetwork:
        assert self.classes is not None
        return network_of(self.config, self.classes, model).to(self.device)

    def evaluate(self, model: Arrays, shard: Shard, chosen: Sequence[int] | None = None) -> NetworkEvaluation:
        """Count one network's agreement with a shard's labels; of ``chosen`` images alone, predictions are kept."""
        network = self._network(model)
        return self._count(lambda _: network, shard, order=chosen, keep=chosen or ())

    def evaluate_clusters(self, state: NetworkState, shard: Shard) -> NetworkEvaluation:
        """Count agreement where every image is segmented by the cluster nearest to its own style."""
        assert state.grouping is not None
        nearest = [state.grouping.nearest(style) for style in self._styles(shard)]

        @lru_cache(maxsize=1)  # cluster by cluster: one network in memory serves any number of them
        def network(cluster: int) -> SegmentationNetwork:
            return self._network(state.cluster_model(cluster))

        order = sorted(range(len(shard)), key=lambda index: nearest[index])
        return self._count(lambda index: network(nearest[index]), shard, order=order)

    def _count(
        self,
        network: Callable[[int], SegmentationNetwork],
        shard: Shard,
        order: Sequence[int] | None,
        keep: Sequence[int] = (),
    ) -> NetworkEvaluation:
        # labels are read by the shard's own table: two data sets name the same classes by different raw values
        table = shard.classes or self.classes
        assert table is not None
        flip = self.config.eval.flip
        return evaluate_network(
            network, shard, table, self.config.transforms, order=order, keep=keep, flip=flip
        )

    def _styles(self, shard: Shard) -> list[np.ndarray]:
        if shard.name not in self.styles:
            settings = style_kind(self.config.style)
            self.styles[shard.name] = [
                extract_style(entry_image(shard, index), settings) for index in range(len(shard))
            ]
        return self.styles[shard.name]

    def examples(self, state: NetworkState, site: str | None, chosen: Sequence[int]) -> Examples:
        """Segment the chosen images; see `Scorer`."""
        shard, table = self.shards[0], self.shards[0].classes or self.classes
        assert table is not None
        model = state.model if site is None else state.model_for(site)
        found = self.evaluate(model, shard, chosen)
        shown = [entry_pair(shard, index, table) for index in chosen]
        return Examples(
            [image for image, _ in shown],
            [found.predictions[index] for index in chosen],
            [truth for _, truth in shown],
            list(range(table.num_classes)),
            table.num_classes,
        )


def evaluate_network_checkpoint(saved: Checkpoint, where: str, shard: Shard, how: Scoring) -> dict[str, Any]:
    """Return the quality fields of a network's record: one confusion, nothing matched.

    Beside the fields that every checkpoint has stand accuracy and precision by class, those of known domains and
    sites (``domain_miou*`` and ``site_miou*``, where there are several) and ``cluster``: which network segmented, with
    ``cluster_images`` where style decided.

    Raises:
        UserError: an image without a label, another class table, a cluster that the run does not have, an option that
            only clusters without names need.
    """
    refuse_site(saved, where, how.site)
    refuse_matching(saved, where, how.matching, how.protocol)
    table = shared_classes(saved, where, shard)
    predictor = NetworkPredictor(saved, where, "auto", how.cluster)

    def predict(_: int, image: Bytes) -> Bytes:
        return predictor.labels(image, flip=how.flip, crf=how.crf)

    found = count_agreement(predict, shard, table, progress=how.progress)
    record = {
        "images": found.num_images,
        "labelled_images": found.num_images,
        **quality(found.confusion, table, "identity"),
        **dict.fromkeys(("mean_cosine", "cluster_share", "entropy")),  # figures of clusters
        "weights_sha256": saved.weights_hash,
        "cluster": predictor.choice,
    }
    if predictor.choice == "nearest":
        record["cluster_images"] = {str(k): n for k, n in sorted(predictor.images.items())}
    return record | spread_fields(found, table)


def shared_classes(saved: Checkpoint, where: str, shard: Shard) -> ClassTable:
    """Return the table that reads the shard's labels: its own, or the checkpoint's where it has none.

    Raises `UserError` unless every image has a label and the classes are those of the network, in its order.
    """
    if not shard.labelled:
        raise UserError(f"{shard.path} names images without labels; a network is scored with all of them.")
    own = checkpoint_classes(saved, where)
    table = shard.classes or own
    if table.names != own.names:
        raise UserError(
            f"{shard.path} has the {table.num_classes} classes of {table.name!r} but {where} those of {own.name!r} "
            f"({own.num_classes}); name a table that reads these labels as the same classes (--classes)."
        )
    return table


def refuse_matching(saved: Checkpoint, where: str, matching: str | None, protocol: str) -> None:
    """Raise `UserError` for ways of scoring that only clusters without names need."""
    reason = f"{where} holds a network that was trained with named classes (task '{saved.config.task}')"
    if matching not in (None, "checkpoint"):
        raise UserError(f"--matching {matching} was given, but {reason}; leave it out.")
    if protocol != "label-size":
        raise UserError(f"--protocol {protocol} was given, but {reason}; it is scored at label-size.")
