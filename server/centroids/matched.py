"""Centroid rules by matching: sites' rows are matched to the current clusters, then merged.

Local training may drift a row from one meaning to another. So each site's rows are first assigned to the
current centroids one to one, at the largest sum of cosines (Hungarian method); then every cluster is merged
over the sites, either by a count-weighted mean on the sphere or by a robust rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from server.centroids.base import (
    CENTROID_RULES,
    Merged,
    RuleFacts,
    RuleInput,
    Stack,
    directions,
    displacement,
)

_CHUNK = 512  # sites held in float64 at once
# Weiszfeld steps at most, and the distance below which a point's weight stops growing.
_WEISZFELD_STEPS = 200
_WEISZFELD_SMOOTHING = 1e-6


def match_rows(similarity: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each row [M] of a similarity [M, K], M <= K, its own column, at the largest total."""
    return np.asarray(linear_sum_assignment(similarity, maximize=True)[1], dtype=np.int64)


def match_sites(current: np.ndarray, stack: Stack) -> NDArray[np.int64]:
    """Return the current cluster [N, K] that each row of each site stands for: a permutation per site.

    Dead rows (see `Stack.live`) have no say: they get what the live ones leave over.
    """
    matches = np.empty(stack.counts.shape, dtype=np.int64)
    targets, live = directions(current).T, stack.live
    for start in range(0, len(stack.sites), _CHUNK):
        part = slice(start, start + _CHUNK)
        cosines = directions(stack.rows[part]) @ targets
        cosines[~live[part]] = 0.0  # one constant for all clusters: no preference
        for offset, similarity in enumerate(cosines):
            matches[start + offset] = match_rows(similarity)
    return matches


def _aligned(current: np.ndarray, stack: Stack) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Yield unit rows [n, K, D] and counts [n, K], by current cluster; counts of dead rows are 0."""
    rank = np.argsort(match_sites(current, stack), axis=1)  # inverse of a permutation
    weights = np.where(stack.live, stack.counts, 0)
    for start in range(0, len(stack.sites), _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = np.take_along_axis(stack.rows[part], rank[part, :, None], axis=1)
        yield directions(rows), np.take_along_axis(weights[part], rank[part], axis=1)


@CENTROID_RULES.register(
    "matched",
    summary="count-weighted direction after matching to the current centroids",
    facts=RuleFacts(takes="centroids", single_sites=True),
)
def merge_matched(given: RuleInput) -> Merged:
    """Return per cluster the direction of the count-weighted sum of unit rows; unused ones stay."""
    sums = np.zeros(given.current.shape)
    for rows, counts in _aligned(given.current, given.stack):
        sums += np.einsum("nk,nkd->kd", counts.astype(np.float64), rows)
    return _on_the_sphere(given.current, sums)


@CENTROID_RULES.register(
    "matched-median",
    summary="coordinate median after matching, one vote a site",
    facts=RuleFacts(takes="centroids", single_sites=True, robust=True),
)
def merge_by_median(given: RuleInput) -> Merged:
    """Return per cluster the coordinate median of the sites' unit rows."""
    return _merge_votes(given, lambda points: np.asarray(np.median(points, axis=0)))


@CENTROID_RULES.register(
    "matched-geometric",
    summary="geometric median after matching, one vote a site",
    facts=RuleFacts(takes="centroids", single_sites=True, robust=True),
)
def merge_by_geometric_median(given: RuleInput) -> Merged:
    """Return per cluster the geometric median of the sites' unit rows."""
    return _merge_votes(given, geometric_median)


def _merge_votes(given: RuleInput, centre: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Merged:
    """Return per cluster a robust centre of the sites' unit rows.

    Each site that uses a cluster has one vote, whatever count it claims: a hostile minority of the voters
    cannot carry the result away. Unused clusters stay as they are.
    """
    current = given.current
    chunks = [(rows.astype(np.float32), counts > 0) for rows, counts in _aligned(current, given.stack)]
    rows = np.concatenate([chunk[0] for chunk in chunks])
    votes = np.concatenate([chunk[1] for chunk in chunks])
    centres = np.zeros(current.shape)
    for cluster in range(len(current)):
        points = rows[votes[:, cluster], cluster].astype(np.float64)
        if len(points):
            centres[cluster] = centre(points)
    return _on_the_sphere(current, centres)


def geometric_median(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the point [D] with the least sum of distances to the points [N, D].

    Smoothed Weiszfeld iteration (Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated
    Learning", 2019), from the coordinate median, which is itself robust.
    """
    centre = np.asarray(np.median(points, axis=0))
    for _ in range(_WEISZFELD_STEPS):
        weights = 1.0 / np.maximum(np.linalg.norm(points - centre, axis=1), _WEISZFELD_SMOOTHING)
        moved = weights @ points / weights.sum()
        step = float(np.linalg.norm(moved - centre))
        centre = moved
        # unit vectors: nothing above float32's precision changes any more
        if step < 1e-10:
            break
    return centre


def _on_the_sphere(current: np.ndarray, centres: NDArray[np.float64]) -> Merged:
    """Normalise the centres; those without a direction are dead and keep the current centroid."""
    dead = np.linalg.norm(centres, axis=1) < 1e-9
    new = np.where(dead[:, None], current, directions(centres)).astype(current.dtype)
    return Merged(new, displacement(current, new), tuple(np.flatnonzero(dead).tolist()))
