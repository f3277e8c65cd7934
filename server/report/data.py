"""What does a run directory say, read without trusting that every field is there?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from common.data.classes import ClassTable
from common.errors import UserError
from common.evaluation.overlay import cluster_colours, hex_colour

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished or running run: its settings, one row a round, and what its newest checkpoint names."""

    folder: Path
    config: dict[str, Any]
    rows: tuple[Row, ...]
    classes: ClassTable | None = None
    mapping: tuple[int, ...] | None = None
    pictures: tuple[Path, ...] = field(default=())

    @property
    def name(self) -> str:
        """The run's name, which its seeds have in common."""
        return str(self.config.get("name") or self.folder.name)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config.get("seed", 0))

    def scored(self, key: str = "miou") -> list[Row]:
        """Rows that carry a number under ``key``, in the order of rounds."""
        return [row for row in self.rows if isinstance(row.get(key), int | float)]

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(round, value) wherever a number stands under ``key``."""
        return [(float(row["round"]), float(row[key])) for row in self.scored(key)]

    @property
    def final(self) -> Row | None:
        """The last scored round. Never the best one: choosing by the score would tune on it."""
        rows = self.scored()
        return rows[-1] if rows else None

    @property
    def minutes(self) -> float:
        """Wall-clock of all rounds."""
        return sum(float(row.get("seconds") or 0) for row in self.rows) / 60

    def site_names(self) -> list[str]:
        """Every site that any row names, site-2 before site-10."""
        names: set[str] = set()
        for row in self.rows:
            names |= set(row.get("sites") or []) | set(row.get("quarantined") or {})
            for key in ("bytes_up", "bytes_down"):
                names |= set(row[key]) if isinstance(row.get(key), Mapping) else set()
        return sorted(names, key=_natural)

    def site_bytes(self, key: str, site: str | None = None) -> float | None:
        """Mean payload per site and round under ``key``, of one site where named; None where unknown."""
        values: list[float] = []
        for row in self.rows:
            sent = row.get(key)
            if isinstance(sent, Mapping):
                values += [float(v) for name, v in sent.items() if site in (None, name) and v is not None]
            elif isinstance(sent, int | float) and site is None:
                values.append(float(sent))
        return fmean(values) if values else None

    def colour_of(self, class_name: str, position: int = 0) -> str:
        """Return ``#rrggbb`` of a class; a made-up one where no class table is known."""
        if self.classes is not None and class_name in self.classes.names:
            return hex_colour(self.classes.colours[self.classes.names.index(class_name)])
        return hex_colour(cluster_colours(position + 1)[position])


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key by which site-2 comes before site-10."""
    parts = "".join(f" {c} " if not c.isdigit() else c for c in name).split()
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def read_run(folder: str | Path) -> Run:
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
    rows: dict[int, Row] = {}
    lines = metrics_file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows[int(row["round"])] = row  # after a resume a round may stand twice: the later line is true
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            if number == len(lines):
                continue  # a run that is writing this very line
            raise UserError(
                f"{metrics_file}, line {number} is not a record with a round; repair it."
            ) from None
    if not rows:
        raise UserError(f"{metrics_file} holds no round yet; wait until the first round is done.")
    classes, mapping = _described(sorted((base / "checkpoints").glob("round-*.json")))
    return Run(
        folder=base,
        config=config,
        rows=tuple(rows[number] for number in sorted(rows)),
        classes=classes,
        mapping=mapping,
        pictures=tuple(sorted((base / "pictures").glob("round-*.png"))),
    )


def _described(sidecars: Iterable[Path]) -> tuple[ClassTable | None, tuple[int, ...] | None]:
    """Return class table and mapping of the newest checkpoint that names them."""
    for sidecar in reversed(list(sidecars)):
        try:
            described = json.loads(sidecar.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError, OSError):
            continue
        if described.get("classes"):
            mapping = described.get("mapping")
            table = ClassTable.from_json(described["classes"], where=str(sidecar))
            return table, None if mapping is None else tuple(int(m) for m in mapping)
    return None, None
