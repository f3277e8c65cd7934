"""The interface of scorers, and what those of clusters and of whole networks share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from common.data.classes import ClassTable
from common.data.images import Bytes
from common.data.manifest import Shard
from common.errors import UserError
from common.evaluation.clusters import EvalProtocol, Matching
from common.evaluation.metrics import Confusion, MatchRule, match, rates, scores, sum_confusions
from common.evaluation.score import Score, scored
from common.settings.schema import RunConfig
from common.system.cli import Progress
from server.inference.base import Cluster

log = logging.getLogger(__name__)

EXAMPLES = 4  # rows of the sheet of a round: enough to see what is confused, and quick to load


EVERY_SITE = "all"
"""The word for every site's own model, one after the other."""


@dataclass(frozen=True)
class Scoring:
    """How a checkpoint is scored (see `server.commands.evaluate.evaluate_checkpoint` for each option)."""

    crf: bool = False
    flip: bool = False
    matching: Matching | None = None
    protocol: EvalProtocol = "label-size"
    cluster: Cluster = "auto"
    site: str | None = None
    cache_dir: str | Path | None = None
    device: str = "auto"
    progress: Progress | None = None


@dataclass(frozen=True)
class Examples:
    """Images uint8 [H, W, 3] with predictions and truth uint8 [H, W], and the class of each output."""

    images: Sequence[Bytes]
    predictions: Sequence[Bytes]
    truths: Sequence[Bytes | None] | None
    mapping: Sequence[int] | None
    outputs: int


@dataclass
class Scorer(ABC):
    """Scores states on labelled images that nobody trains on, where the server has any.

    ``shards`` is empty where it has none: then only counts that sites send are scored. ``weights_hash`` is that of the
    server's own model, ``channels`` and ``grid`` say what it gives; empty, 0 and None where it has none.
    """

    config: RunConfig
    classes: ClassTable | None = None
    shards: list[Shard] = field(default_factory=list)
    weights_hash: str = ""
    channels: int = 0
    grid: tuple[int, int] | None = None
    sums_sites: ClassVar[bool] = False
    """Whether every site's own score stands beside that of the sum, as a spread."""

    @property
    def matching(self) -> MatchRule:
        """How outputs are matched to classes."""
        return self.config.eval.matching

    @property
    def separate(self) -> bool:
        """Whether sites keep parts of their own, so that there is no common model to score."""
        return self.config.centroids.share != "both"

    @property
    def split(self) -> str | None:
        """Names of the scored shards."""
        if not self.shards:
            return "sites" if self.config.eval.where == "sites" else None
        return ",".join(shard.name for shard in self.shards)

    def score(self, state: Any) -> Score:
        """Score the shared model, or each site's own where they are not shared."""
        if not self.shards:
            return Score()
        if not (self.separate and state.private):  # a site may have its own beside the shared model
            return self.score_shared(state)
        result = Score()
        for name in sorted(state.private):
            result.add_site(name, self.score_site(state, name))
        return result

    @abstractmethod
    def score_shared(self, state: Any) -> Score:
        """Score the model that sites share."""

    @abstractmethod
    def score_site(self, state: Any, site: str) -> Score:
        """Score one site's own model."""

    def score_counts(self, confusion: Confusion) -> Score:
        """Match and score counts [K, C]; without any count, or without classes, there is no score."""
        return Score() if self.classes is None else scored(confusion, self.classes, self.matching)

    def score_confusions(self, confusions: Mapping[str, np.ndarray]) -> Score:
        """Sum the sites' matrices in the order of their names and match once.

        Outputs of models that are not the same have nothing but their numbers in common: where sites keep parts
        of their own, every matrix is matched and scored by itself.
        """
        if not confusions or self.classes is None:
            return Score()
        result = Score()
        if not self.separate:
            total = sum_confusions(confusions)
            if self.config.privacy.minimum_count and not total.total:
                least = self.config.privacy.minimum_count
                log.warning("no score: no count of any site reaches privacy.minimum-count %d", least)
            result = self.score_counts(total)
        if self.separate or self.sums_sites:
            for name in sorted(confusions):
                result.add_site(name, self.score_counts(sum_confusions({name: confusions[name]})))
        return result

    def draw(self, run_dir: Path, round_number: int, state: Any) -> Path | None:
        """Draw a few images of the first shard; sites' own models are shown by the first of them."""
        if not self.shards:
            return None
        from server.report.pictures import write_pictures

        shard = self.shards[0]
        count = min(EXAMPLES, len(shard))
        chosen = [round(i * (len(shard) - 1) / max(count - 1, 1)) for i in range(count)]
        site = min(state.private) if self.separate and state.private else None
        shown = self.examples(state, site, chosen)
        return write_pictures(
            run_dir,
            round_number,
            shown.images,
            shown.predictions,
            shown.truths,
            self.classes,
            shown.mapping,
            num_clusters=shown.outputs,
        )

    @abstractmethod
    def examples(self, state: Any, site: str | None, chosen: Sequence[int]) -> Examples:
        """Segment the chosen images of the first shard by the shared model, or by a site's own."""


def quality(
    confusion: Confusion | None,
    classes: ClassTable | None,
    how: Literal[MatchRule, "checkpoint"],
    known_mapping: list[int] | None = None,
) -> dict[str, Any]:
    """Return the quality fields of a record: matched once on the summed counts; all None without labels.

    ``known_mapping`` is that of the checkpoint. Raises `UserError` where it is asked for but of other classes.
    """
    of_labels = ("pixels", "accuracy", "miou", "miou_all", "per_class_iou", "confusion", "matching")
    record: dict[str, Any] = dict.fromkeys(of_labels) | {
        "mapping": known_mapping,
        "classes": None if classes is None else list(classes.names),
    }
    if confusion is None or classes is None or (how == "identity" and not confusion.total):
        return record
    if how == "checkpoint":
        mapping = np.asarray(known_mapping, dtype=np.int64)
        highest = int(mapping.max())
        if highest >= classes.num_classes:
            raise UserError(
                f"The checkpoint's clusters stand for {highest + 1} classes but the shard has "
                f"{classes.num_classes} ({classes.name}); match on this shard instead: hungarian."
            )
    else:
        mapping = match(confusion, how)
    record |= scores(confusion, mapping).to_dict(classes.names) | rates(confusion, mapping, classes.names)
    return record | {"confusion": confusion.to_list(), "matching": how}
