"""Spherical k-means, its seeding by greedy k-means++, and maximin selection.

All functions take one point a row and are pure: what is random follows from a seed. Spherical k-means
raises the weighted sum of cosines between points and the unit mean of their cluster (Dhillon and Modha,
2001). Sums of disjoint sets of points add up, so that one iteration over many sites is exactly one over the
pooled points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from common.errors import UserError

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]

# lengths below it have no direction: float64 rounds unit vectors off at 1e-16
_EPSILON = 1e-10
# points compared with all centres at a time, which bounds the memory
_CHUNK = 1 << 16


def unit_rows(points: npt.ArrayLike) -> _Floats:
    """Return the rows scaled to length 1, in float64; a row of zeros stays zero."""
    rows = np.asarray(points, dtype=np.float64)
    lengths: _Floats = np.linalg.norm(rows, axis=-1, keepdims=True)
    scaled: _Floats = rows / np.maximum(lengths, _EPSILON)
    return scaled


def longer_than_units(sums: np.ndarray, counts: np.ndarray) -> npt.NDArray[np.bool_]:
    """Return which sums [K, D] are longer than as many unit vectors as ``counts`` [K] says can add up to.

    The one tolerance of all who ask, a thousandth, is that of numbers that traveled as float16.
    """
    lengths = np.linalg.norm(np.asarray(sums, dtype=np.float64), axis=1)
    return np.asarray(lengths > counts * (1 + 1e-3))


def farthest_first(points: npt.ArrayLike, count: int, first: int = 0, spherical: bool = False) -> _Ints:
    """Select ``count`` rows, each as far as possible from those selected before (maximin, Gonzalez 1985).

    Starts at row ``first``; distance is Euclidean, of the rows as they are or (``spherical``) of their
    directions. Ties go to the lowest index. Returns int64 [count] in order of selection. Raises UserError
    for fewer rows than ``count``.
    """
    rows = unit_rows(points) if spherical else np.asarray(points, dtype=np.float64)
    _check_enough(len(rows), count)
    selected = np.empty(count, dtype=np.int64)
    selected[0] = first
    # each row's distance to the selection is kept: O(count x rows x dim) instead of count times that
    nearest = _squared_distances(rows, rows[first])
    for position in range(1, count):
        selected[position] = int(np.argmax(nearest))
        np.minimum(nearest, _squared_distances(rows, rows[selected[position]]), out=nearest)
    return selected


def plus_plus(
    points: npt.ArrayLike, count: int, generator: np.random.Generator, weights: npt.ArrayLike | None = None
) -> _Ints:
    """Select ``count`` rows by greedy k-means++ on directions: int64 [count].

    A row is drawn with probability proportional to its weight times 1 - cosine to the nearest selected row
    (half the squared distance of directions); of 2 + log(count) draws the one that lowers the total most is
    taken (Arthur and Vassilvitskii, 2007). Where all weight coincides with the selection, rows not yet
    selected are drawn uniformly.
    """
    rows = unit_rows(points)
    _check_enough(len(rows), count)
    mass = _weights_of(len(rows), weights)
    trials = 2 + int(np.log(count))
    selected = [int(generator.choice(len(rows), p=mass / mass.sum()))]
    gap = np.maximum(1 - rows @ rows[selected[0]], 0)
    while len(selected) < count:
        potential = gap * mass
        total = potential.sum()
        if total <= _EPSILON * mass.sum():
            free = np.setdiff1d(np.arange(len(rows)), selected)
            candidates = generator.choice(free, size=1)
        else:
            candidates = generator.choice(len(rows), size=trials, p=potential / total)
        gaps = np.minimum(gap, np.maximum(1 - rows[candidates] @ rows.T, 0))
        best = int(np.argmin(gaps @ mass))
        selected.append(int(candidates[best]))
        gap = gaps[best]
    return np.array(selected, dtype=np.int64)


class DirectionSums(NamedTuple):
    """What one E-step leaves of a set of points: sums of directions [K, D] and their weights [K]."""

    sums: _Floats
    weights: _Floats


def assign(points: npt.ArrayLike, centres: npt.ArrayLike) -> tuple[_Ints, _Floats]:
    """Return each row's centre of highest cosine (ties to the lowest index) and that cosine: [M], [M]."""
    return _assign(unit_rows(points), unit_rows(centres))


def expectation(
    points: npt.ArrayLike, centres: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> DirectionSums:
    """Assign every row to its centre and add up what the next centres need."""
    rows, means = unit_rows(points), unit_rows(centres)
    mass = _weights_of(len(rows), weights)
    labels, _ = _assign(rows, means)
    return DirectionSums(_sum_rows(rows, labels, mass, len(means)), _sum_by(labels, mass, len(means)))


def maximisation(sums: npt.ArrayLike, previous: npt.ArrayLike) -> _Floats:
    """Return the unit centres of summed directions [K, D]; a cluster without any keeps its previous one."""
    totals, before = np.asarray(sums, dtype=np.float64), unit_rows(previous)
    lengths = np.linalg.norm(totals, axis=1, keepdims=True)
    return np.where(lengths > _EPSILON, totals / np.maximum(lengths, _EPSILON), before)


@dataclass(frozen=True)
class Clustering:
    """Unit centres [K, D], each point's cluster [M], and the weighted mean cosine that was reached."""

    centres: _Floats
    labels: _Ints
    mean_cosine: float
    iterations: int


def spherical_kmeans(
    points: npt.ArrayLike,
    clusters: int,
    seed: int,
    *,
    weights: npt.ArrayLike | None = None,
    start: npt.ArrayLike | None = None,
    restarts: int = 4,
    iterations: int = 100,
    tolerance: float = 1e-9,
) -> Clustering:
    """Cluster rows [M, D] by direction; the best of ``restarts`` by mean cosine, deterministic by ``seed``.

    ``weights`` [M] count a point several times, or not at all. ``start`` [K, D] replaces the seeding (then
    there is one run). A cluster that runs empty is moved to the point, of positive weight, that is worst
    represented (its weight times 1 - cosine is largest). Stops when the mean cosine grows by less than
    ``tolerance``. Raises UserError for fewer points of positive weight than clusters, for non-finite points
    and for negative weights.
    """
    rows = unit_rows(points)
    mass = _weights_of(len(rows), weights)
    if not np.isfinite(rows).all():
        raise UserError("Points to cluster hold NaN or infinity; look for the step that made them.")
    _check_enough(int((mass > 0).sum()), clusters)
    best: Clustering | None = None
    for attempt in range(1 if start is not None else restarts):
        # restarts differ and yet follow from the seed
        generator = np.random.default_rng([seed, attempt])
        if start is None:
            usable = np.flatnonzero(mass > 0)
            centres = rows[usable[plus_plus(rows[usable], clusters, generator, mass[usable])]]
        else:
            centres = unit_rows(start)
        found = _lloyd(rows, centres, mass, iterations, tolerance)
        if best is None or found.mean_cosine > best.mean_cosine:
            best = found
    assert best is not None
    return best


def _lloyd(rows: _Floats, centres: _Floats, mass: _Floats, iterations: int, tolerance: float) -> Clustering:
    """Alternate assignment and update; every round raises the mean cosine or is the last."""
    total, reached = mass.sum(), -np.inf
    for done in range(iterations + 1):
        labels, cosines = _assign(rows, centres)
        empty = np.flatnonzero(_sum_by(labels, mass, len(centres)) == 0)
        if len(empty):
            centres = _refill(rows, centres, mass * (1 - cosines), mass, empty)
            labels, cosines = _assign(rows, centres)
        value = float((cosines * mass).sum() / total)
        if value - reached < tolerance or done == iterations:
            break
        reached = value
        centres = maximisation(_sum_rows(rows, labels, mass, len(centres)), centres)
    return Clustering(centres, labels, value, done)


def _refill(rows: _Floats, centres: _Floats, loss: _Floats, mass: _Floats, empty: _Ints) -> _Floats:
    """Move the centres of empty clusters to the worst represented points, worst first."""
    moved = centres.copy()
    for cluster in empty:
        worst = int(np.argmax(loss))
        moved[cluster] = rows[worst]
        loss = np.minimum(loss, mass * (1 - rows @ rows[worst]))
    return moved


def _assign(rows: _Floats, means: _Floats) -> tuple[_Ints, _Floats]:
    labels = np.empty(len(rows), dtype=np.int64)
    cosines = np.empty(len(rows))
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        similarity = rows[part] @ means.T
        labels[part] = similarity.argmax(axis=1)
        cosines[part] = similarity[np.arange(len(similarity)), labels[part]]
    return labels, cosines


def _sum_rows(rows: _Floats, labels: _Ints, mass: _Floats, clusters: int) -> _Floats:
    """Add up weighted rows by label, as products with the membership matrix: [clusters, D]."""
    sums = np.zeros((clusters, rows.shape[1]))
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        membership = np.zeros((clusters, len(labels[part])))
        membership[labels[part], np.arange(membership.shape[1])] = mass[part]
        sums += membership @ rows[part]
    return sums


def _sum_by(labels: _Ints, values: _Floats, clusters: int) -> _Floats:
    return np.bincount(labels, weights=values, minlength=clusters).astype(np.float64)


def _weights_of(count: int, weights: npt.ArrayLike | None) -> _Floats:
    if weights is None:
        return np.ones(count)
    mass = np.asarray(weights, dtype=np.float64)
    if mass.shape != (count,) or not np.isfinite(mass).all() or (mass < 0).any():
        raise UserError(
            f"Weights {mass.shape} were given for {count} points; expected a number of at least 0 for each."
        )
    return mass


def _squared_distances(rows: _Floats, row: _Floats) -> _Floats:
    difference = rows - row
    squares: _Floats = np.einsum("md,md->m", difference, difference)
    return squares


def _check_enough(points: int, wanted: int) -> None:
    if wanted < 1 or points < wanted:
        raise UserError(f"{wanted} clusters were asked for but there are {points} points of positive weight.")
