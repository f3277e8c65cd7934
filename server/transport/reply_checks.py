"""Checks replies and explains each rejection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from common import wire
from common.clustering.kmeans import longer_than_units

# Header of a serialized array, generously.
SLACK_BYTES = 4096
# Far above any data set, far below what a sum of int64 overflows at.
MOST_IMAGES = 1 << 40

# Of a metric: the largest loss that any site reports is far below, and sums over sites stay finite.
MOST_METRIC = 2.0**64
# Pixels of an image, and what any site can have counted: their sums stay exact, as integers and as floats.
MOST_PIXELS_COUNTED = 1 << 28
MOST_COUNTED = 1 << 50
# What opens the words of a site that could not do its work, which is no wrong answer.
REPORTED = "it reported: "

# Groups that are averaged by rules which expect one type.
_TRAINED = frozenset({"head", "centroids", "shared", "weights", "statistics"})

_RANGES = {"mean_cosine": (-1.0001, 1.0001), "kept": (0.0, 1.0001), "displacement": (0.0, MOST_METRIC)}

# Groups that come with the numbers by which their site is weighed.
_TABLES = ("shares", "adjacency", "overlaps")  # of several starts, beside their sums
_MODELS = ("head", "weights", "differences", "statistics")


@dataclass(frozen=True)
class Sender:
    """Whom a question went to, as its greeting says, and which question it was.

    ``called`` is what it calls itself, ``images`` and ``grid`` are those of the shard that it trains on.
    """

    called: str
    images: int
    grid: tuple[int, int]
    run_key: str
    round: int

    def fault(self, update: wire.Update) -> str | None:
        """Return why an update is no answer of this site to this question, in one phrase, or None."""
        if update.site != self.called:
            return f"it answers as {update.site[:64]!r}, in its greeting it was {self.called!r}"
        if update.run_key != self.run_key:
            return f"it answers in run {update.run_key[:64]!r}, which is another one"
        if update.round != self.round:
            return f"it answers round {update.round}, but round {self.round} was asked"
        return None


# Says why a reply of the right form cannot be honest, in one phrase, or None.
Plausible = Callable[[wire.Update, Sender], str | None]


@dataclass(frozen=True)
class ReplySchema:
    """Groups, array names and shapes that a reply has to have: ``shapes["head"]["linear.weight"]``.

    ``plausible`` is what the task itself knows of honest replies.
    """

    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    weights_hash: str | None = None
    plausible: Plausible | None = None

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

    def fault(self, update: wire.Update, sender: Sender | None = None) -> str | None:
        """Return what is wrong with an update in one phrase, or None."""
        if sender is not None and (fault := sender.fault(update)):
            return fault
        if "error" in update.facts:
            return f"{REPORTED}{update.facts['error']}"
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
        fault = _impossible(update)
        if fault is None and self.plausible is not None and sender is not None:
            fault = self.plausible(update, sender)
        return fault


def _impossible(update: wire.Update) -> str | None:
    """Name figures that no honest site can have: negative counts, sums of unit codes longer than their number."""
    weighed = any(group in update.groups for group in _MODELS)
    # alone in its cluster, a site of weight 0 has no mean
    least = 1 if update.groups.keys() & {"weights", "differences", "statistics"} else 0
    for key in ("images", "batches"):
        number = update.facts.get(key, None if weighed else 0)
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= MOST_IMAGES:
            return f"its number of {key} is {str(number)[:40]!r}, expected a count"
    for key, value in update.groups.get("statistics", {}).items():
        if key.endswith("running_var") and value.min(initial=0) < 0:
            return f"'statistics/{key}' holds a negative variance"
    for key, figure in update.metrics.items():
        low, high = _RANGES.get(key, (-MOST_METRIC, MOST_METRIC))
        if not low <= figure <= high:
            return f"its metric {key[:40]!r} is {figure}"
    for group in ("centroids", "sums", "masks", "confusion"):
        for key in ("counts", "confusion", *_TABLES):
            counts = update.groups.get(group, {}).get(key)
            if counts is not None and (counts.dtype.kind not in "iu" or (counts < 0).any()):
                return f"'{group}/{key}' holds something else than counts"
            if counts is not None and float(counts.sum(dtype=np.float64)) > MOST_COUNTED:
                return f"'{group}/{key}' counts more than any site can hold"
    for group in ("masks", "confusion"):
        most = int(update.facts.get("images", 0)) * MOST_PIXELS_COUNTED
        if any(int(counts.sum()) > most for counts in update.groups.get(group, {}).values()):
            return f"'{group}' counts more pixels than its images can have"
    sums = update.groups.get("sums")
    if sums is not None and longer_than_units(sums["sums"], sums["counts"]).any():
        return "'sums/sums' is longer than as many unit codes can be"
    return None


def read_update(
    content: object, expectation: ReplySchema, sender: Sender | None = None
) -> tuple[wire.Update | None, str | None]:
    """Decode and check a reply; returns the update, or None and the reason why it is left out."""
    try:
        update = wire.decode_update(content, expectation.limit_bytes, expectation.shapes)  # type: ignore[arg-type]
    except wire.WireError as error:
        return None, str(error)
    except Exception as error:  # a reply is hostile input: whatever it breaks, it must not break the round
        return None, f"unreadable ({type(error).__name__})"
    try:
        fault = expectation.fault(update, sender)
    except Exception as error:
        return None, f"cannot be checked ({type(error).__name__})"
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
