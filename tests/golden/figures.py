"""Compares figures with the golden files, and rewrites those figures alone that left their tolerance.

A file holds nested objects of numbers, lists of numbers, and nulls (for a figure that is undefined). Hashes of
results are compared within one machine only and stand in no file: the last bits differ from one CPU to the next.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent

DIGITS = 7
"""Significant digits in a file: 100 times finer than the tightest tolerance."""

Figures = Mapping[str, Any]
"""Nested: a number, None, a list of figures, or more figures by name."""


@dataclass(frozen=True)
class Tolerance:
    """How far a figure may move: ``relative`` to itself, or ``absolute`` where it is close to 0."""

    relative: float
    absolute: float

    def holds(self, found: float | None, golden: float | None) -> bool:
        """Whether a figure is as good as the golden one; None only equals None."""
        if found is None or golden is None:
            return found is golden
        return math.isclose(found, golden, rel_tol=self.relative, abs_tol=self.absolute)


@dataclass(frozen=True)
class Golden:
    """What one golden file pins: its name, its figures, their tolerance, and hashes of the same results."""

    name: str
    figures: Figures
    tolerance: Tolerance
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The tracked file."""
        return FOLDER / f"{self.name}.json"


def tidy(value: Any) -> Any:
    """Return figures as plain, rounded JSON values; raises ValueError for a figure that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): tidy(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return tidy(value.tolist())
    if isinstance(value, (list, tuple)):
        return [tidy(inner) for inner in value]
    if value is None or isinstance(value, (bool, int, np.integer)):
        return None if value is None else int(value)
    if not math.isfinite(value):
        raise ValueError(f"A golden figure is {value}; expected a finite number.")
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded


def flat(value: Any, path: str = "") -> Iterator[tuple[str, float | None]]:
    """Yield every single figure with its path, for example ``("mean/uniform/2/0", 0.5)``."""
    inner: Iterator[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping):
        inner = iter(value.items())
    elif isinstance(value, list):
        inner = iter(enumerate(value))
    if inner is None:
        yield path, value
        return
    for key, part in inner:
        yield from flat(part, f"{path}/{key}" if path else str(key))


def moved(found: Figures, golden: Figures, tolerance: Tolerance) -> dict[str, tuple[Any, Any]]:
    """Return the figures that left their tolerance: path -> (golden, found); "absent" where one side has none."""
    old, new = dict(flat(golden)), dict(flat(tidy(found)))
    return {
        path: (old.get(path, "absent"), new.get(path, "absent"))
        for path in sorted(old | new)
        if path not in old or path not in new or not tolerance.holds(new[path], old[path])
    }


def hash_of(*values: Any) -> str:
    """Return a hash that tells apart any two results that differ in a single bit."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        elif isinstance(value, Mapping):
            digest.update(hash_of(*(part for key in sorted(value) for part in (key, value[key]))).encode())
        elif isinstance(value, (list, tuple)):
            digest.update(hash_of(*value).encode())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def read(path: Path) -> Figures:
    """Read a golden file; empty where it does not exist yet."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def update(golden: Golden) -> dict[str, tuple[Any, Any]]:
    """Rewrite the file where figures left their tolerance, and return those; the others keep their spelling."""
    old, new = read(golden.path), tidy(golden.figures)
    changes = moved(new, old, golden.tolerance)
    if changes:
        golden.path.write_text(to_json(_merged(new, old, changes)) + "\n", encoding="utf-8")
    return changes


def _merged(new: Any, old: Any, changes: Mapping[str, Any], path: str = "") -> Any:
    """Return the new figures with the old spelling of those that did not move."""
    if isinstance(new, (dict, list)):
        pairs = new.items() if isinstance(new, dict) else enumerate(new)
        inner = {
            key: _merged(part, _part(old, key), changes, f"{path}/{key}" if path else str(key))
            for key, part in pairs
        }
        return inner if isinstance(new, dict) else list(inner.values())
    return new if path in changes else old


def _part(value: Any, key: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(str(key))
    return value[key] if isinstance(value, list) and isinstance(key, int) and key < len(value) else None


def to_json(value: Any, indent: int = 0) -> str:
    """Return sorted JSON with one object's name, or one row of numbers, a line."""
    if not isinstance(value, dict):
        return json.dumps(value)
    inside = " " * (indent + 2)
    lines = [f"{inside}{json.dumps(key)}: {to_json(value[key], indent + 2)}" for key in sorted(value)]
    return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"
