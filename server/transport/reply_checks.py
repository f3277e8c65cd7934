"""Checks replies and explains each rejection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from common import wire

# Header of a serialized array, generously.
SLACK_BYTES = 4096
# Far above any data set, far below what a sum of int64 overflows at.
MOST_IMAGES = 1 << 40

# Groups that are averaged by rules which expect one type.
_TRAINED = frozenset({"head", "centroids", "shared", "weights", "statistics"})

# Groups that come with the numbers by which their site is weighed.
_TABLES = ("shares", "adjacency", "overlaps")  # of several starts, beside their sums
_MODELS = ("head", "weights", "statistics")


@dataclass(frozen=True)
class ReplySchema:
    """Groups, array names and shapes that a reply has to have: ``shapes["head"]["linear.weight"]``."""

    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    weights_hash: str | None = None

    @classmethod
    def like(
        cls, groups: Mapping[str, Mapping[str, np.ndarray]], weights_hash: str | None = None
    ) -> ReplySchema:
        """Expect arrays of the same names and shapes as ``groups``."""
        shapes = {
            name: {key: value.shape for key, value in arrays.items()} for name, arrays in groups.items()
        }
        return cls(shapes, weights_hash)

    @property
    def limit_bytes(self) -> int:
        """The largest array that may come, in bytes as serialised; checked before it is decoded."""
        # float64 or int64 at most
        sizes = [8 * int(np.prod(shape)) for arrays in self.shapes.values() for shape in arrays.values()]
        return max(sizes, default=0) + SLACK_BYTES

    def fault(self, update: wire.Update) -> str | None:
        """Return what is wrong with an update in one phrase, or None."""
        if "error" in update.facts:
            return f"it reported: {update.facts['error']}"
        if self.weights_hash and update.weights_hash != self.weights_hash:
            return f"other backbone weights ({update.weights_hash[:12]} instead of {self.weights_hash[:12]})"
        for name, arrays in self.shapes.items():
            group = update.groups.get(name)
            if group is None:
                return f"'{name}' is missing"
            if set(group) != set(arrays):
                wrong = sorted(set(group) ^ set(arrays))
                return f"'{name}' has other arrays than expected ({', '.join(wrong)[:80]})"
            for key, shape in arrays.items():
                value = group[key]
                if name in _TRAINED and key != "counts" and value.dtype != np.float32:
                    return f"'{name}/{key}' has type {value.dtype}, expected float32"
                if value.shape != shape:
                    return f"'{name}/{key}' has shape {value.shape}, expected {shape}"
                if not np.isfinite(value).all():
                    return f"'{name}/{key}' holds NaN or infinity"
        # what nobody asked for might hold images
        if extra := sorted(set(update.groups) - set(self.shapes)):
            return f"unexpected group '{extra[0][:40]}'"
        return _impossible(update)


def _impossible(update: wire.Update) -> str | None:
    """Name figures that no honest site can have: negative counts, sums of unit codes longer than their number."""
    weighed = any(group in update.groups for group in _MODELS)
    # alone in its cluster, a site of weight 0 has no mean
    least = 1 if "weights" in update.groups or "statistics" in update.groups else 0
    for key in ("images", "batches"):
        number = update.facts.get(key, None if weighed else 0)
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= MOST_IMAGES:
            return f"its number of {key} is {str(number)[:40]!r}, expected a count"
    for key, value in update.groups.get("statistics", {}).items():
        if key.endswith("running_var") and value.min(initial=0) < 0:
            return f"'statistics/{key}' holds a negative variance"
    for key, figure in update.metrics.items():
        if not np.isfinite(figure):
            return f"its metric {key[:40]!r} is {figure}"
    for group in ("centroids", "sums", "masks", "confusion"):
        for key in ("counts", "confusion", *_TABLES):
            counts = update.groups.get(group, {}).get(key)
            if counts is not None and (counts.dtype.kind not in "iu" or (counts < 0).any()):
                return f"'{group}/{key}' holds something else than counts"
    sums = update.groups.get("sums")
    if sums is not None:
        lengths = np.linalg.norm(sums["sums"].astype(np.float64), axis=1)
        # the slack is that of float16 on the wire
        if (lengths > sums["counts"] * (1 + 1e-3) + 1e-6).any():
            return "'sums/sums' is longer than as many unit codes can be"
    return None


def read_update(content: object, expectation: ReplySchema) -> tuple[wire.Update | None, str | None]:
    """Decode and check a reply; returns the update, or None and the reason why it is left out."""
    try:
        update = wire.decode_update(content, expectation.limit_bytes, expectation.shapes)  # type: ignore[arg-type]
    except wire.WireError as error:
        return None, str(error)
    except Exception as error:  # a reply is hostile input: whatever it breaks, it must not break the round
        return None, f"unreadable ({type(error).__name__})"
    fault = expectation.fault(update)
    return (None, fault) if fault else (update, None)


class Ask(Protocol):
    """Sends one action to named sites and returns what came back well-formed, by name."""

    def __call__(self, names: list[str], action: str, expectation: ReplySchema) -> dict[str, wire.Update]:
        """See the class."""


# Characters of a reason in log, metrics and report.
LONGEST = 400


def sanitize(text: str, longest: int = LONGEST) -> str:
    """Return text as one line of at most ``longest`` printable characters; what is left out shows as "..."."""
    seen = " ".join(text[: 4 * longest].split())  # a text of many megabytes is not looked through
    line = "".join(character if character.isprintable() else "?" for character in seen)
    return line if len(line) <= longest and len(text) <= 4 * longest else line[: longest - 3] + "..."
