"""FedCC centroid rules: cluster the centroids of all sites into new ones.

FedCC (from FUSS, federated unsupervised semantic segmentation) pools the K rows of all N sites and clusters
the N*K points, by k-means or by greedy maximin. As published, both are Euclidean on raw rows, ignore how
many patches stand behind a row, and scramble the numbering. Each of that is a switch here: ``spherical``
(directions instead of raw rows), ``weighted`` (patch counts), ``keep_index`` (number the new centroids
after the current ones). With either of the first two, dead rows are left out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from common.clustering.kmeans import assign, expectation, farthest_first, maximisation, spherical_kmeans
from server.centroids.base import CENTROID_RULES, Merged, RuleFacts, RuleInput, directions, displacement
from server.centroids.matched import match_rows

# Of the published code: results are compared with its own.
PUBLISHED_SEED = 42
PUBLISHED_STARTS = 10

_SAMPLE = 20_000  # rows on which spherical k-means is started where there are more
_PASSES = 10  # over all rows, from the centres of the sample


Weights = NDArray[np.float64] | None


@CENTROID_RULES.register(
    "fedcc-kmeans",
    summary="k-means of all rows of all sites (FUSS)",
    facts=RuleFacts(takes="centroids", single_sites=True),
)
def merge_by_kmeans(given: RuleInput) -> Merged:
    """Return the centres of k-means; as published: sklearn's KMeans(K, random_state=42, n_init=10) on raw rows."""
    return _merge_pooled(given, _kmeans, _cluster_by_kmeans)


@CENTROID_RULES.register(
    "fedcc-maximin",
    summary="the rows of all sites that lie farthest from each other (FUSS)",
    facts=RuleFacts(takes="centroids", single_sites=True),
)
def merge_by_maximin(given: RuleInput) -> Merged:
    """Return rows far from each other; as published: the selected rows, from row 0 of the first site on."""
    return _merge_pooled(
        given, lambda points, clusters: points[farthest_first(points, clusters)], _cluster_by_maximin
    )


def _merge_pooled(
    given: RuleInput,
    published: Callable[[np.ndarray, int], np.ndarray],
    cluster: Callable[[np.ndarray, Weights, int, bool], np.ndarray],
) -> Merged:
    """Return K centroids that cluster the rows of all sites; memory and time are linear in their number.

    With all three switches off (``spherical``, ``weighted``, ``keep_index``) this is the published rule to the letter.

    Where fewer than K different rows exist (dead ones count in the published form), those are the new centroids
    of the clusters that they match best, and the other clusters are reported as dead and keep the current centroid.
    """
    current, stack, settings = given.current, given.stack, given.settings
    clusters = len(current)
    points = stack.rows.reshape(-1, current.shape[1])
    if not (settings.spherical or settings.weighted):
        # without repetitions: k-means and maximin would fill up with copies
        few = np.unique(points, axis=0)
        centres = few if len(few) < clusters else published(points, clusters)
    else:
        live = stack.live.ravel()
        points, counts = points[live], stack.counts.ravel()[live].astype(np.float64)
        weights = counts if settings.weighted else None
        centres = cluster(points, weights, min(clusters, len(points)), settings.spherical)
    new, dead = _place(centres, current, settings.keep_index)
    return Merged(new, displacement(current, new), dead)


def _kmeans(points: np.ndarray, clusters: int, weights: Weights = None) -> np.ndarray:
    """Return sklearn's k-means centres, as published; one thread, so that sums have one order."""
    from sklearn.cluster import KMeans

    with threadpool_limits(limits=1, user_api="openmp"):
        fitted = KMeans(clusters, random_state=PUBLISHED_SEED, n_init=PUBLISHED_STARTS).fit(
            points, sample_weight=weights
        )
    return np.asarray(fitted.cluster_centers_)


def _cluster_by_kmeans(points: np.ndarray, weights: Weights, clusters: int, spherical: bool) -> np.ndarray:
    if not clusters:
        return points
    if not spherical:
        few = np.unique(points, axis=0)
        return few if len(few) < clusters else _kmeans(points, clusters, weights)
    if len(points) <= _SAMPLE:
        found = spherical_kmeans(points, clusters, PUBLISHED_SEED, weights=weights)
        return np.asarray(found.centres[np.bincount(found.labels, minlength=clusters) > 0])
    # thousands of sites: restarts on a sample, then exact passes over all rows, a chunk at a time
    sample = np.random.default_rng(PUBLISHED_SEED).choice(len(points), _SAMPLE, replace=False)
    mass = None if weights is None else weights[sample]
    centres = spherical_kmeans(points[sample], clusters, PUBLISHED_SEED, weights=mass).centres
    for _ in range(_PASSES):
        found_sums = expectation(points, centres, weights)
        before, centres = centres, maximisation(found_sums.sums, centres)
        if np.abs(centres - before).max() < 1e-6:
            break
    return np.asarray(centres[found_sums.weights > 0])


def _cluster_by_maximin(points: np.ndarray, weights: Weights, clusters: int, spherical: bool) -> np.ndarray:
    """Return maximin's rows; with weights: start at the heaviest row, then average the rows nearest to each.

    The average is what keeps a single odd row from becoming a centroid all by its own choice.
    """
    if not clusters:
        return points
    start = 0 if weights is None else int(np.argmax(weights))
    centres = points[farthest_first(points, clusters, first=start, spherical=spherical)]
    nearest = assign(points, centres)[0] if spherical else _nearest(points, centres)
    used = np.flatnonzero(np.bincount(nearest, minlength=clusters))  # fewer where rows repeat each other
    if weights is None:
        return directions(centres[used]) if spherical else np.asarray(centres[used])
    means = np.empty((len(used), points.shape[1]))
    for row, cluster in enumerate(used):
        members = nearest == cluster
        rows = directions(points[members]) if spherical else points[members].astype(np.float64)
        means[row] = weights[members] @ rows / weights[members].sum()
    return directions(means) if spherical else means


def _nearest(points: np.ndarray, centres: np.ndarray) -> NDArray[np.int64]:
    """Return the index of the nearest centre [M] in Euclidean distance."""
    target = centres.astype(np.float64)
    offset = 0.5 * np.einsum("kd,kd->k", target, target)
    return np.asarray(np.argmax(points.astype(np.float64) @ target.T - offset, axis=1))


def _place(centres: np.ndarray, current: np.ndarray, keep_index: bool) -> tuple[np.ndarray, tuple[int, ...]]:
    """Give the centres [M, D] numbers among K >= M clusters; return the new rows and the unfilled numbers."""
    # as published, the numbering is scrambled
    if len(centres) == len(current) and not keep_index:
        return centres.astype(current.dtype), ()
    clusters = match_rows(directions(centres) @ directions(current).T)
    new = current.copy()
    new[clusters] = centres
    return new, tuple(sorted(set(range(len(current))) - set(clusters.tolist())))
