"""The exact k-means rule: sums over the sites' patches give new centroids, as if all patches lay in one place.

One pass of spherical k-means needs of every cluster only the sum of its unit codes and their number. Both
add up over sites, so that the federated pass equals the central one, and sums are all that has to be known
(also under secure aggregation). With momentum, the sums are a running total over rounds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from common.clustering.kmeans import longer_than_units
from common.errors import UserError
from server.centroids.base import (
    CENTROID_RULES,
    Merged,
    RuleFacts,
    RuleInput,
    Stack,
    directions,
    displacement,
)

_SPLIT = 0.05  # how far apart the halves of a split cluster start; any small number cuts along the same plane


@CENTROID_RULES.register(
    "lloyd",
    summary="exact spherical k-means: direction of the sum of all patches of a cluster",
    facts=RuleFacts(takes="sums", single_sites=False),
)
def merge_lloyd(given: RuleInput) -> Merged:
    """Return unit centroids S / ||S|| with S <- momentum * S + total, and the state to hand back next time.

    A cluster that holds less than one patch, or whose codes cancel out, is dead. It keeps its centroid, or
    (``empty`` is ``split``) takes half of the widest cluster, the one with the largest n - ||S||, which is the sum of
    (1 - cosine) to its own centroid. The halves start on both sides of it, apart in the direction of the
    dead centroid: that needs no data, no draw, and nothing but the sums.

    Raises `UserError` naming a site whose sums cannot be those of as many unit vectors as it counts.
    """
    current, momentum = given.current, given.settings.momentum
    sums, counts = total_sums(given.stack)
    sums += momentum * _saved(given.memory, "sums", sums)
    counts += momentum * _saved(given.memory, "counts", counts)
    lengths = np.linalg.norm(sums, axis=1)
    alive = (counts >= 1.0) & (lengths > 1e-9 * counts)
    centroids = np.where(alive[:, None], directions(sums), current.astype(np.float64))
    dead = np.flatnonzero(~alive).tolist()
    reseeded = []
    for cluster in dead if given.settings.empty == "split" else []:
        spread = np.where(alive, counts - np.linalg.norm(sums, axis=1), -np.inf)
        widest = int(np.argmax(spread))
        if counts[widest] < 2.0 or spread[widest] <= 1e-9 * counts[widest]:
            break  # every cluster is a single direction: there is nothing to split
        # the dead centroid is as good a direction as any, and the same in every run
        apart = _orthogonal(current[cluster].astype(np.float64), centroids[widest])
        halves = directions(
            np.stack([centroids[widest] - _SPLIT * apart, centroids[widest] + _SPLIT * apart])
        )
        centroids[[widest, cluster]] = halves
        sums[[widest, cluster]] = halves * np.linalg.norm(sums[widest]) / 2.0
        counts[[widest, cluster]] = counts[widest] / 2.0
        alive[cluster] = True
        reseeded.append(cluster)
    new = centroids.astype(current.dtype)
    return Merged(
        new, displacement(current, new), tuple(dead), tuple(reseeded), {"sums": sums, "counts": counts}
    )


def total_sums(stack: Stack) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Add the sites' sums [K, D] and counts [K] in float64, in the order of their names.

    Raises `UserError` naming a site whose sums are longer than their counts: unit vectors cannot add up to that.
    """
    sums, lost = np.zeros(stack.rows.shape[1:]), np.zeros(stack.rows.shape[1:])
    for name, rows, members in zip(stack.sites, stack.rows.astype(np.float64), stack.counts, strict=True):
        if longer_than_units(rows, members).any():
            raise UserError(f"Sums of site '{name}' are longer than their counts; leave the site out.")
        # what each addition rounds off is kept aside (Knuth's TwoSum), so that federated sums equal pooled ones
        total = sums + rows
        part = total - sums
        lost += (sums - (total - part)) + (rows - part)
        sums = total
    return sums + lost, stack.counts.sum(axis=0, dtype=np.float64)


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
    direction = directions(vector)
    across = direction - (direction @ axis) * axis
    if np.linalg.norm(across) < 1e-6:
        direction = np.zeros_like(axis)
        direction[int(np.argmin(np.abs(axis)))] = 1.0
        across = direction - (direction @ axis) * axis
    return directions(across)
