"""How do the semantic centroids of many sites become one set?

`merge_centroids` applies the rule of the settings to what sites send when they optimise centroids
themselves; `merge_lloyd` (from `server/centroids/lloyd.py`) takes sums instead. All rules are linear in the
number of sites and depend on site names at most, never on the order of arrival.

============================  =============================================  ====================
rule                          centroid of a cluster                          file
============================  =============================================  ====================
mean                          weighted mean of the rows with its index       here
fedcc-kmeans, fedcc-maximin   cluster of all rows of all sites               centroid_fedcc.py
matched                       count-weighted direction after matching        centroid_matching.py
matched-median, -geometric    robust centre after matching, one vote a site  centroid_matching.py
lloyd                         direction of the sum of all its patches        centroid_lloyd.py
============================  =============================================  ====================
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from common.settings.unsupervised import Centroids
from server.aggregation.heads import weighted_mean
from server.centroids.base import Merged, SiteCentroids, Stack, displacement, stack_sites
from server.centroids.fedcc import merge_fedcc
from server.centroids.lloyd import SiteSums, merge_lloyd, total_sums
from server.centroids.matched import merge_matched, merge_matched_robustly

__all__ = [
    "Merged",
    "SiteCentroids",
    "SiteSums",
    "merge_centroids",
    "merge_lloyd",
    "merge_mean",
    "total_sums",
]


def merge_mean(current: np.ndarray, stack: Stack, weights: Mapping[str, float] | None = None) -> Merged:
    """Return the mean of the raw rows index by index, as federated averaging does (counts are ignored).

    ``weights`` by site name, e.g. images; equal without. Rows that nobody used are averaged like the
    others, and named as dead.
    """
    rows = {site: {"rows": stack.rows[i]} for i, site in enumerate(stack.sites)}
    new = weighted_mean(rows, weights)["rows"].astype(current.dtype)
    dead = np.flatnonzero(stack.counts.sum(axis=0) == 0)
    return Merged(new, displacement(current, new), tuple(dead.tolist()))


def merge_centroids(
    current: np.ndarray,
    sites: Mapping[str, SiteCentroids],
    settings: Centroids,
    weights: Mapping[str, float] | None = None,
) -> Merged:
    """Merge the sites' centroids [K, D] into new ones by the rule of the settings.

    Args:
        current: the centroids that were sent out, [K, D].
        sites: what came back, by site name.
        settings: ``merge`` and the switches of its rule.
        weights: of the sites, for rule ``mean``.

    Raises `UserError` naming a site whose arrays do not fit, and `ValueError` for rule ``lloyd``.
    """
    stack = stack_sites(sites, current)
    match settings.merge:
        case "mean":
            return merge_mean(current, stack, weights)
        case "fedcc-kmeans" | "fedcc-maximin":
            return merge_fedcc(
                current,
                stack,
                "kmeans" if settings.merge == "fedcc-kmeans" else "maximin",
                spherical=settings.spherical,
                weighted=settings.weighted,
                keep_index=settings.keep_index,
            )
        case "matched":
            return merge_matched(current, stack)
        case "matched-median":
            return merge_matched_robustly(current, stack, "median")
        case "matched-geometric":
            return merge_matched_robustly(current, stack, "geometric")
        case "lloyd":
            raise ValueError("rule 'lloyd' merges sums, not centroids: use merge_lloyd")
