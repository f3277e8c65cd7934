"""Scorer of whole networks, on labelled shards that nobody trains on.

Several test sets are scored side by side and never mixed. Where sites are clustered by style, a test image is
also given to the network of the nearest cluster, by the image's own style: both scores stand in the record.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from common.data.check import check_labelled, check_truth
from common.data.classes import ClassTable
from common.data.manifest import Shard, natural_key
from common.data.reading import entry_image, entry_pair
from common.evaluation.metrics import Confusion, MatchRule, match, rates
from common.evaluation.networks import NetworkEvaluation, evaluate_network
from common.evaluation.score import Score, scored
from common.models.deeplab import DeepLab, build_network, load_arrays, network_signature
from common.models.parameter_groups import split_flat
from common.settings.schema import RunConfig
from common.styles.style import extract_style, style_kind
from common.system.device import choose_device
from common.wire import Arrays
from server.evaluation.scorer import Examples, Scorer
from server.evaluation.shards import evaluation_shards, run_classes
from server.states.network import NetworkState


def set_fields(found: NetworkEvaluation, table: ClassTable) -> dict[str, Any]:
    """Return the record of one test set: its qualities, and the spread over its known domains and sites."""
    score = scored(found.confusion, table, "identity")
    record: dict[str, Any] = {
        "accuracy": score.accuracy,
        "miou": score.miou,
        "per_class_iou": score.per_class_iou,
        "images": found.num_images,
    }
    return record | rate_fields(found.confusion, table) | spread_fields(found, table)


def rate_fields(confusion: Confusion, table: ClassTable) -> dict[str, Any]:
    """Return accuracy and precision by class, their mean and IoU by frequency; without any count there are none."""
    if not confusion.total:
        return {}
    return rates(confusion, match(confusion, "identity")).to_dict(table.names)


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
        if table is not None:
            for shard in shards:  # of a real run, nobody else looks before the first round is over
                check_labelled(shard, table, "the run is scored on it")
                check_truth(shard)
        return cls(config, table, shards, device=str(choose_device("auto")))

    @property
    def matching(self) -> MatchRule:
        """Outputs are classes, in their order."""
        return "identity"

    @property
    def weights_hash(self) -> str:
        """Identity of the architecture."""
        if self.classes is None:
            return ""
        return network_signature(self.classes.num_classes, self.config.network)

    @property
    def channels(self) -> int:
        """Number of classes: what the network gives."""
        return 0 if self.classes is None else self.classes.num_classes

    @property
    def grid(self) -> tuple[int, int] | None:
        """No fixed grid: images enter at any size."""
        return None

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

    def network(self, model: Arrays) -> DeepLab:
        """Return a network of these arrays on the scoring device, in evaluation mode."""
        assert self.classes is not None
        blank = self.config.network.model_copy(update={"weights": "random"})  # every array is replaced
        module = build_network(self.classes.num_classes, blank, self.config.seed)
        load_arrays(module, *split_flat(module, model))
        module.to(self.device).eval()
        return module

    def evaluate(
        self, model: Arrays, shard: Shard, keep: Sequence[int] = (), order: Sequence[int] | None = None
    ) -> NetworkEvaluation:
        """Count one network's agreement with a shard's labels, or with those of the images in ``order``.

        Label files are read by the shard's own class table: GTA5 and IDDA name the same 16 classes by
        different raw values.
        """
        table = shard.classes or self.classes
        assert table is not None
        network = self.network(model)
        return evaluate_network(
            lambda _: network,
            shard,
            table,
            self.config.transforms,
            keep=keep,
            order=order,
            flip=self.config.eval.flip,
        )

    def evaluate_clusters(self, state: NetworkState, shard: Shard) -> NetworkEvaluation:
        """Count agreement where every image is segmented by the cluster nearest to its own style."""
        assert self.classes is not None and state.grouping is not None
        nearest = [state.grouping.nearest(style) for style in self._styles(shard)]
        total: NetworkEvaluation | None = None
        for cluster in sorted(set(nearest)):
            members = [index for index, k in enumerate(nearest) if k == cluster]
            part = self.evaluate(state.cluster_model(cluster), shard, order=members)
            if total is None:
                total = part
            else:
                total.add(part)
        assert total is not None
        return total

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
        found = self.evaluate(model, shard, keep=chosen, order=chosen)
        shown = [entry_pair(shard, index, table) for index in chosen]
        return Examples(
            [image for image, _ in shown],
            [found.predictions[index] for index in chosen],
            [truth for _, truth in shown],
            list(range(table.num_classes)),
            table.num_classes,
        )
