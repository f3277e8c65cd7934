"""Run directories as a report reads them: records, test sets, shares of classes.

Test sets stand side by side and are never mixed. Figures are those of the last scored round and the mean of the last
few: no round is ever chosen by its score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from common.data.classes import ClassTable
from common.data.manifest import read_partition
from common.errors import UserError
from common.evaluation.overlay import cluster_colours, hex_colour
from common.evaluation.score import RoundRecord, SetRecord, unsealed_line
from common.order import natural_key
from common.settings.federation import Eval
from common.settings.load import migrated
from common.settings.schema import RunConfig
from common.settings.section import flatten
from common.settings.tasks import TASK_FACTS, TaskFacts
from common.styles.bank import STYLES_PICTURE
from common.styles.clusters import CLUSTERS_FILE, ClustersRecord
from server.run_dir import run_warnings

# (round, value) of the rounds that have one.
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class TestSet:
    """One labelled shard: its record in every scored round, as (round, record)."""

    __test__ = False  # pytest takes it for a test

    name: str
    records: tuple[tuple[float, SetRecord], ...]

    @property
    def final(self) -> SetRecord:
        """The record of the last scored round."""
        return self.records[-1][1]

    def curve(self, key: str) -> Curve:
        """(round, value) wherever a number stands under ``key``."""
        return [(number, value) for number, r in self.records if (value := getattr(r, key)) is not None]

    def last(self, key: str, count: int) -> list[float]:
        """Return the values of the last ``count`` scored rounds, fewer where there were fewer."""
        return [value for _, value in self.curve(key)[-count:]]

    @property
    def clustered(self) -> bool:
        """Whether the networks of style clusters were scored beside the shared one."""
        return bool(self.curve("cluster_miou"))


@dataclass(frozen=True)
class RunRecord:
    """A finished or running run: its settings, a record a round, and what its newest checkpoint names."""

    folder: Path
    config: dict[str, Any]
    rows: tuple[RoundRecord, ...]
    classes: ClassTable | None = None
    mapping: tuple[int, ...] | None = None
    pictures: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's name, which its seeds have in common."""
        return str(self.config.get("name") or self.folder.name)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config.get("seed", 0))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Settings by dotted key."""
        return migrated(flatten(self.config))

    @property
    def facts(self) -> TaskFacts:
        """What is true of the run's task; a run that names none had the default."""
        return TASK_FACTS.get(str(self.settings.get("task")), RunConfig().facts)

    @property
    def is_network(self) -> bool:
        """Whether the run trained a whole network."""
        return not self.facts.frozen_backbone

    def scored(self, key: str = "miou") -> list[RoundRecord]:
        """Rows that carry a number under ``key``, in the order of rounds."""
        return [row for row in self.rows if getattr(row, key) is not None]

    def curve(self, key: str) -> Curve:
        """(round, value) wherever a number stands under ``key``."""
        return [(float(row.round), float(getattr(row, key))) for row in self.scored(key)]

    @property
    def final(self) -> RoundRecord | None:
        """The last scored round. Never the best one: choosing by the score would tune on it."""
        rows = self.scored()
        return rows[-1] if rows else None

    @property
    def own(self) -> RoundRecord | None:
        """The last round that scored sites' own models."""
        rows = self.scored("site_miou_mean")
        return rows[-1] if rows else None

    @cached_property
    def sets(self) -> list[TestSet]:
        """The test sets in the order of the settings; a run without ``sets`` has its split alone."""
        found: dict[str, list[tuple[float, SetRecord]]] = {}
        for row in self.scored():
            alone = {row.split or "labels": SetRecord.model_validate(row.to_json())}
            for name, record in (row.sets or alone).items():
                found.setdefault(name, []).append((float(row.round), record))
        return [TestSet(name, tuple(records)) for name, records in found.items()]

    @property
    def last_count(self) -> int:
        """Over how many last scored rounds a mean is taken (``eval.last``)."""
        given = self.settings.get("eval.last")
        return given if isinstance(given, int) else Eval().last

    @property
    def minutes(self) -> float:
        """Wall-clock of all rounds."""
        return sum(row.seconds for row in self.rows) / 60

    def spent(self) -> dict[str, float]:
        """Return the seconds of all sites by what they went to, then those of scoring; empty where nobody told."""
        told = [one for row in self.rows for one in row.site_seconds.values()]
        parts = {name: sum(one.get(name, 0.0) for one in told) for name in (told[0] if told else {})}
        return parts | {"scoring": sum(row.scoring_seconds or 0 for row in self.rows)} if parts else {}

    def site_names(self) -> list[str]:
        """Every site that any row names, site-2 before site-10."""
        names: set[str] = set()
        for row in self.rows:
            names.update(row.sites, row.quarantined, row.bytes_up, row.bytes_down)
        return sorted(names, key=natural_key)

    def answered(self, site: str) -> int:
        """Return the number of rounds to which a site contributed."""
        return sum(site in row.sites and site not in row.quarantined for row in self.rows)

    def site_bytes(self, key: str, site: str | None = None) -> float | None:
        """Mean payload per site and round under ``key``, of one site where named; None where unknown."""
        sent = [(name, count) for row in self.rows for name, count in getattr(row, key).items()]
        values = [count for name, count in sent if site in (None, name)]
        return fmean(values) if values else None

    def colour_of(self, class_name: str, position: int = 0) -> str:
        """Return ``#rrggbb`` of a class; a made-up one where no class table is known."""
        if self.classes is not None and class_name in self.classes.names:
            return hex_colour(self.classes.colours[self.classes.names.index(class_name)])
        return hex_colour(cluster_colours(position + 1)[position])


def read_run(folder: str | Path) -> RunRecord:
    """Read a run directory; raises `UserError` where it is none or its records are broken."""
    base = Path(folder)
    config_file, metrics_file = base / "config.json", base / "metrics.jsonl"
    for file in (config_file, metrics_file):
        if not file.is_file():
            raise UserError(
                f"{base} is no run directory: it holds no {file.name}; give a folder that a run wrote."
            )
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{config_file} is not valid JSON ({error}); give a folder that a run wrote."
        ) from None
    rows: dict[int, RoundRecord] = {}
    lines = metrics_file.read_bytes().rstrip(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = RoundRecord.model_validate(unsealed_line(line.decode()))
            rows[row.round] = row  # after a resume a round may stand twice: the later line is true
        except (ValueError, RecursionError):
            if number == len(lines):
                continue  # a run that is writing this very line
            raise UserError(
                f"{metrics_file}, line {number} is not a record with a round, or was changed; repair it."
            ) from None
    if not rows:
        raise UserError(f"{metrics_file} holds no round yet; wait until the first round is done.")
    classes, mapping = _described(base / "checkpoints")
    return RunRecord(
        folder=base,
        config=config,
        rows=tuple(rows[number] for number in sorted(rows)),
        classes=classes,
        mapping=mapping,
        pictures=tuple(sorted((base / "pictures").glob("round-*.png"))),
        warnings=run_warnings(base),
    )


def _described(checkpoints: Path) -> tuple[ClassTable | None, tuple[int, ...] | None]:
    """Return class table and mapping of the newest checkpoint that names them."""
    for sidecar in sorted(checkpoints.glob("round-*.json"), reverse=True):  # the newest may name no classes
        try:
            described = json.loads(sidecar.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError, OSError):
            continue
        if described.get("classes"):
            mapping = described.get("mapping")
            table = ClassTable.from_json(described["classes"], where=str(sidecar))
            return table, None if mapping is None else tuple(int(m) for m in mapping)
    return None, None


def style_clusters(folder: Path) -> ClustersRecord | str | None:
    """Return which sites of a run are together; "broken" where that cannot be read, None where nobody was grouped."""
    try:
        return ClustersRecord.model_validate_json((folder / CLUSTERS_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        return "broken"


def style_sheets(folder: Path) -> list[Path]:
    """Return source images in the sites' styles, where they were drawn; many sites make several files."""
    first = folder / "pictures" / STYLES_PICTURE
    others = first.parent.glob(f"{first.stem}-*{first.suffix}")
    return [first, *sorted(others, key=lambda file: natural_key(file.name))] if first.is_file() else []


def confusion_shares(
    counts: Sequence[Sequence[int]], mapping: Sequence[int], num_classes: int
) -> list[list[float] | None]:
    """Turn counts [K, C] of clusters by classes into shares [C true, C predicted (+ 1: no class)].

    Rows of classes without pixels are None.
    """
    spare = any(matched < 0 for matched in mapping)
    merged = [[0] * (num_classes + spare) for _ in range(num_classes)]
    for cluster, matched in enumerate(mapping):
        for true in range(num_classes):
            merged[true][matched if matched >= 0 else num_classes] += int(counts[cluster][true])
    return [[value / sum(row) for value in row] if sum(row) else None for row in merged]


def class_shares(run: RunRecord) -> dict[str, float]:
    """Return the share of labelled pixels of each class, of the first set in the last scored round; {} if unknown.

    Classes without pixels are left out.
    """
    for row in reversed(run.rows):
        counts, names = row.confusion, list(row.per_class_iou or {})
        if counts and len(counts[0]) == len(names):
            return _shares(names, [sum(column) for column in zip(*counts, strict=True)])
    return {}


def trained_shares(run: RunRecord) -> dict[str, float]:
    """Return the share of labelled pixels of each class in the sites' training images; {} if unknown.

    Known where sites open labels and the shards' ``partition.json`` is at hand. Classes without pixels are left out.
    """
    if not (run.facts.opens_labels and run.settings.get("simulation.shards")):
        return {}
    try:
        partition = read_partition(str(run.settings["simulation.shards"]))
        counts = [sum(map(int, column)) for column in zip(*(partition.histogram or {}).values(), strict=True)]
    except (UserError, AttributeError, TypeError, ValueError):  # a report does without what somebody broke
        return {}
    if partition.classes is None or len(counts) != partition.classes.num_classes:
        return {}
    return _shares(partition.classes.names, counts)


def _shares(names: Sequence[str], counts: Sequence[int]) -> dict[str, float]:
    total = sum(counts)
    return {name: count / total for name, count in zip(names, counts, strict=True) if count}


def rarest(shares: Mapping[str, float], count: int = 5) -> list[str]:
    """Return the ``count`` classes with fewest pixels, the rarest first; of equals the first by name."""
    return sorted(shares, key=lambda name: (shares[name], name))[:count]
