"""The interface of scorers, and the labelled shards that a run is scored on, at the server or on the sites."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from common.checkpoint import Checkpoint
from common.data.classes import ClassTable, load_table
from common.data.images import Bytes
from common.data.manifest import Shard, read_partition, read_shard
from common.errors import UserError
from common.evaluation.clusters import EvalProtocol, Matching
from common.evaluation.metrics import Confusion, MatchRule, sum_confusions
from common.evaluation.score import Score, scored
from common.order import natural_key
from common.settings.schema import RunConfig
from common.system.cli import Progress
from server.inference.base import Cluster


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


def evaluation_shard(config: RunConfig) -> Shard | None:
    """Read the one manifest that the server scores clusters on; a relative path may start in the shards folder."""
    if config.eval.where != "server" or not config.eval.shard:
        return None
    return scored_shard(config.eval.shard, config)


def evaluation_shards(config: RunConfig) -> list[Shard]:
    """Read the manifests that the server scores a network on; one without a class table has the run's.

    Raises `UserError` as `scored_shard` does, where one has no labels, and where two have one name.
    """
    if config.eval.where != "server" or not config.eval.shard:
        return []
    shards = []
    for part in config.eval.shard.split(","):
        shard = scored_shard(part.strip(), config)
        if not shard.labelled:
            raise UserError(
                f"{shard.path} names images without labels; scores of task '{config.task}' need them all."
            )
        shards.append(shard)
    names = [shard.name for shard in shards]
    if len(set(names)) < len(names):
        raise UserError(f"eval.shard names two manifests called {max(names, key=names.count)}; rename one.")
    table = run_classes(config, shards)
    return [replace(shard, classes=shard.classes or table) for shard in shards]


def run_classes(config: RunConfig, shards: Sequence[Shard]) -> ClassTable | None:
    """Return the classes of a run: those of its settings or sites, else of the first scored shard that has any."""
    return known_classes(config) or next(
        (shard.classes for shard in shards if shard.classes is not None), None
    )


def site_shards(config: RunConfig, sites: Sequence[str]) -> list[Shard]:
    """Return the labelled shards of simulated sites that a run is scored on where ``eval.where`` is "sites"."""
    folder, root = Path(config.simulation.shards), config.simulation.data_root or None
    paths = {folder / config.eval.shard.format(site=site) for site in sites}
    return [read_shard(path, root) for path in sorted(paths, key=lambda path: natural_key(str(path)))]


log = logging.getLogger(__name__)

EXAMPLES = 4  # rows of the sheet of a round: enough to see what is confused, and quick to load


# The word for every site's own model, one after the other.
EVERY_SITE = "all"


@dataclass(frozen=True)
class Scoring:
    """How a checkpoint is scored (see `server.commands.evaluate.evaluate_checkpoint` for each option)."""

    crf: bool = False
    flip: bool = False
    matching: Matching | None = None
    protocol: EvalProtocol = "label-size"
    cluster: Cluster = "auto"
    site: str | None = None
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
        for name in sorted(state.private, key=natural_key):
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
        return (
            Score()
            if self.classes is None
            else scored(confusion, self.classes, self.matching, self.config.eval.published)
        )

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
            for name in sorted(confusions, key=natural_key):
                result.add_site(name, self.score_counts(sum_confusions({name: confusions[name]})))
        return result

    def draw(self, run_dir: Path, round_number: int, state: Any) -> Path | None:
        """Draw a few images of the first shard; sites' own models are shown by the first of them."""
        if not self.shards:
            return None
        # matplotlib is slow to load, and most rounds draw nothing
        from server.report.page import contact_sheet, write_pictures

        shard = self.shards[0]
        count = min(EXAMPLES, len(shard))
        # evenly over the shard, the same in every round
        chosen = [round(i * (len(shard) - 1) / max(count - 1, 1)) for i in range(count)]
        site = min(state.private) if self.separate and state.private else None
        shown = self.examples(state, site, chosen)
        sheet = contact_sheet(
            shown.images, shown.predictions, shown.truths, self.classes, shown.mapping, shown.outputs
        )
        return write_pictures(run_dir, round_number, sheet)

    @abstractmethod
    def examples(self, state: Any, site: str | None, chosen: Sequence[int]) -> Examples:
        """Segment the chosen images of the first shard by the shared model, or by a site's own."""


def mapping_for(saved: Checkpoint, classes: ClassTable | None) -> list[int] | None:
    """Return the class of each cluster as the checkpoint names it, by numbers of ``classes``; -1 for other names.

    A person may have renamed the classes of a checkpoint, so that their numbers are no longer those of a shard.
    Raises `UserError` where the two have no name in common.
    """
    if (
        saved.mapping is None
        or saved.classes is None
        or classes is None
        or saved.classes.names == classes.names
    ):
        return saved.mapping
    place = {name: number for number, name in enumerate(classes.names)}
    found = [place.get(saved.classes.names[matched], -1) if matched >= 0 else -1 for matched in saved.mapping]
    if max(found) < 0:
        raise UserError(
            f"The checkpoint's clusters are called {', '.join(saved.classes.names[:4])}, but the shard has the classes "
            f"{', '.join(classes.names[:4])} ({classes.name}); match on this shard instead: hungarian."
        )
    return found
