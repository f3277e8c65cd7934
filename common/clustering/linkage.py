"""Joins many small clusters into few: average linkage of their centroids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from common.errors import UserError


def join_clusters(
    centroids: npt.NDArray[np.floating], clusters: int, used: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int64]:
    """Return the group 0 .. K-1 of each of M directions [M, D], groups numbered by their first member.

    The two groups whose members are nearest on average (Euclidean distance of unit vectors) become one until K are
    left (UPGMA; Sokal and Michener, 1958). What is many clusters first follows the shape of the codes; what is
    joined last is what differs most. Directions that are not ``used`` [M] by any patch do not count, and go to the
    group of the nearest one that is. Raises `UserError` for fewer directions than groups.
    """
    from sklearn.cluster import AgglomerativeClustering  # slow to import

    lengths = np.linalg.norm(centroids, axis=1, keepdims=True)
    units = centroids / np.maximum(lengths, np.finfo(np.float64).tiny)
    real = lengths[:, 0] > 0
    alive = np.flatnonzero(real if used is None or (used & real).sum() < clusters else used & real)
    if len(alive) < clusters:
        raise UserError(
            f"{len(alive)} of {len(centroids)} clusters have a direction, too few for model.clusters = {clusters}; "
            "raise centroids.over or lower model.clusters."
        )
    if len(alive) == clusters:
        found = np.arange(clusters)
    else:
        rule = AgglomerativeClustering(n_clusters=clusters, metric="euclidean", linkage="average")
        found = rule.fit_predict(units[alive].astype(np.float64))
    nearest = (units @ units[alive].T).argmax(axis=1)
    nearest[alive] = np.arange(len(alive))
    groups = found[nearest]
    _, first = np.unique(groups, return_index=True)
    order = np.empty(clusters, dtype=np.int64)
    order[groups[np.sort(first)]] = np.arange(clusters)
    return np.asarray(order[groups], dtype=np.int64)
