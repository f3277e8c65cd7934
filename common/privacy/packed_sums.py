"""Packed sums: what of a site's update adds up over sites, and back to one update.

Means travel as weight times value beside the weight, so that every rule that needs sums only (weighted mean,
exact k-means, the spectral scatter) can work from totals: secure summation and noise both build on it. The
total is read back as the update of one site that holds everything; the merge rules then need no second form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from common.losses.base import Shapes, sums_form

_Groups = Mapping[str, Mapping[str, np.ndarray]]
PackedSums = dict[str, NDArray[np.float64]]

Inner = TypeVar("Inner")

# _Groups whose total is divided by the sum of the weights.
AVERAGED = ("head", "shared", "centroids")
# Metrics of a site that are averaged over sites; others stay at the site.
SUMMED_METRICS = ("loss", "mean_cosine", "displacement")
WEIGHT = "weight"
_METRICS = "metrics"
_COUNTS = "counts"
# Arrays of whole numbers, which a total of masked numbers gives back with a rounding.
_WHOLE = (_COUNTS, "shares", "adjacency", "overlaps")


@dataclass(frozen=True)
class Total:
    """_Groups and metrics as one site that holds all images would send them, and the sum of the weights."""

    groups: dict[str, dict[str, np.ndarray]]
    metrics: dict[str, float]
    weight: float


def summed_groups(groups: Mapping[str, Inner]) -> dict[str, Inner]:
    """Return the groups that the merge rules look at; beside sums a site's centroids, as received, are of no use."""
    unused = {"centroids"} if "sums" in groups else set()
    return {name: inner for name, inner in groups.items() if name not in unused}


def pack_sums(groups: _Groups, metrics: Mapping[str, float], weight: float) -> PackedSums:
    """Return what adds up, by ``group/key``, in float64. Metrics that are missing count as 0."""
    found: PackedSums = {WEIGHT: np.array([weight], dtype=np.float64)}
    found[_METRICS] = weight * np.array([metrics.get(key, 0.0) for key in SUMMED_METRICS], dtype=np.float64)
    for group, arrays in groups.items():
        form = sums_form(group)
        for key, value in (form.pack(arrays) if form else arrays).items():
            factor = weight if group in AVERAGED and key != _COUNTS else 1.0
            found[f"{group}/{key}"] = factor * np.asarray(value, dtype=np.float64)
    return found


def packed_shapes(shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> Shapes:
    """Return the shapes of `pack_sums` for groups of these shapes."""
    found: Shapes = {WEIGHT: (1,), _METRICS: (len(SUMMED_METRICS),)}
    for group, arrays in shapes.items():
        inner = dict(arrays)
        if form := sums_form(group):
            inner = form.packed_shapes(arrays)
        found |= {f"{group}/{key}": shape for key, shape in inner.items()}
    return found


def pack(summands: PackedSums) -> NDArray[np.float64]:
    """Lay all arrays end to end, in the order of their names."""
    return np.concatenate([np.ravel(summands[key]) for key in sorted(summands)])


def unpack(vector: NDArray[np.float64], shapes: Shapes) -> PackedSums:
    """Undo `pack`; raises ValueError where the vector has another length than the shapes."""
    sizes = [int(np.prod(shapes[key])) for key in sorted(shapes)]
    if vector.shape != (sum(sizes),):
        raise ValueError(f"a vector of shape {vector.shape} for {sum(sizes)} numbers")
    parts = np.split(vector, np.cumsum(sizes)[:-1])
    return {key: part.reshape(shapes[key]) for key, part in zip(sorted(shapes), parts, strict=True)}


def unpack_sums(totals: PackedSums, sites: int) -> Total:
    """Read the total of ``sites`` sites as the update of one; raises ValueError where no weight is left."""
    weight = float(totals[WEIGHT][0])
    if not weight > 0:
        raise ValueError(f"the weights of {sites} sites add up to {weight:g}")
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, value in totals.items():
        group, _, key = name.partition("/")
        if not key:
            continue
        if key in _WHOLE:
            array: np.ndarray = np.rint(value).astype(np.int64)
        else:
            array = (value / weight).astype(np.float32) if group in AVERAGED else value
        groups.setdefault(group, {})[key] = array
    for group in groups:
        if form := sums_form(group):
            groups[group] = form.unpack(groups[group])
    metrics = dict(zip(SUMMED_METRICS, (totals[_METRICS] / weight).tolist(), strict=True))
    return Total(groups, {key: value for key, value in metrics.items() if value}, weight)
