"""How do sums over the sites' patches become new centroids, exactly as if all patches lay in one place?

One pass of spherical k-means needs of every cluster only the sum of its unit codes and their number. Both
add up over sites, so that the federated pass equals the central one, and sums are all that has to be known
(also under secure aggregation). With momentum, the sums are a running total over rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from server.aggregation.exact_sum import ExactSum
from server.centroids.base import Merged, displacement, unit

_SPLIT = 0.05  # how far apart the halves of a split cluster start; any small number cuts along the same plane


@dataclass(frozen=True)
class SiteSums:
    """Sums of the unit codes [K, D] of one site by nearest centroid, and their numbers [K]."""

    sums: np.ndarray
    counts: np.ndarray


def total_sums(sites: Mapping[str, SiteSums], current: np.ndarray) -> SiteSums:
    """Add the sites' sums without rounding (see `ExactSum`), so that their order cannot matter.

    Raises `UserError` naming a site whose sums do not fit ``current`` [K, D], are not finite, or cannot be
    sums of that many unit vectors.
    """
    if not sites:
        raise UserError("Cannot merge sums of no site at all; at least one site has to answer.")
    sums, counts = ExactSum(current.shape), ExactSum(current.shape[:1])
    for name in sorted(sites):
        site = sites[name]
        if site.sums.shape != current.shape or site.counts.shape != current.shape[:1]:
            raise UserError(
                f"Site '{name}' sent sums {site.sums.shape} with counts {site.counts.shape}; "
                f"expected {current.shape} with {current.shape[:1]}."
            )
        lengths = np.linalg.norm(site.sums.astype(np.float64), axis=1)
        if not (np.isfinite(lengths).all() and (lengths <= site.counts * (1 + 1e-3)).all()):
            raise UserError(
                f"Sums of site '{name}' are not finite or longer than their counts; leave the site out."
            )
        sums.add(site.sums.astype(np.float64))
        counts.add(site.counts.astype(np.float64))
    return SiteSums(sums.value(), counts.value())


def merge_lloyd(
    current: np.ndarray,
    total: SiteSums,
    state: Mapping[str, np.ndarray] | None = None,
    *,
    momentum: float = 0.0,
    empty: Literal["keep", "split"] = "split",
) -> Merged:
    """Return unit centroids S / ||S|| with S <- momentum * S + total, and the state to hand back next time.

    A cluster that holds less than one patch, or whose codes cancel out, is dead. It keeps its centroid, or
    (``split``) takes half of the widest cluster, the one with the largest n - ||S||, which is the sum of
    (1 - cosine) to its own centroid. The halves start on both sides of it, apart in the direction of the
    dead centroid: that needs no data, no draw, and nothing but the sums.
    """
    state = state or {}
    sums = total.sums.astype(np.float64) + momentum * _saved(state, "sums", total.sums)
    counts = total.counts.astype(np.float64) + momentum * _saved(state, "counts", total.counts)
    lengths = np.linalg.norm(sums, axis=1)
    alive = (counts >= 1.0) & (lengths > 1e-9 * counts)
    centroids = np.where(alive[:, None], unit(sums), current.astype(np.float64))
    dead = np.flatnonzero(~alive).tolist()
    reseeded = []
    for cluster in dead if empty == "split" else []:
        spread = np.where(alive, counts - np.linalg.norm(sums, axis=1), -np.inf)
        widest = int(np.argmax(spread))
        if counts[widest] < 2.0 or spread[widest] <= 1e-9 * counts[widest]:
            break  # every cluster is a single direction: there is nothing to split
        apart = _orthogonal(current[cluster].astype(np.float64), centroids[widest])
        halves = unit(np.stack([centroids[widest] - _SPLIT * apart, centroids[widest] + _SPLIT * apart]))
        centroids[[widest, cluster]] = halves
        sums[[widest, cluster]] = halves * np.linalg.norm(sums[widest]) / 2.0
        counts[[widest, cluster]] = counts[widest] / 2.0
        alive[cluster] = True
        reseeded.append(cluster)
    new = centroids.astype(current.dtype)
    return Merged(
        new, displacement(current, new), tuple(dead), tuple(reseeded), {"sums": sums, "counts": counts}
    )


def _saved(state: Mapping[str, np.ndarray], key: str, like: np.ndarray) -> NDArray[np.float64]:
    saved = np.asarray(state.get(key, np.zeros(like.shape)), dtype=np.float64)
    if saved.shape != like.shape:
        raise UserError(
            f"The saved centroid {key} have shape {saved.shape}; expected {like.shape}: "
            "they come from another model, so start without them."
        )
    return saved


def _orthogonal(vector: NDArray[np.float64], axis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit part of ``vector`` across the unit ``axis``; a coordinate axis where there is none."""
    direction = unit(vector)
    across = direction - (direction @ axis) * axis
    if np.linalg.norm(across) < 1e-6:
        direction = np.zeros_like(axis)
        direction[int(np.argmin(np.abs(axis)))] = 1.0
        across = direction - (direction @ axis) * axis
    return unit(across)
