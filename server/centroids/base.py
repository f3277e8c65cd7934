"""What did the sites say about their centroids, and what does a merge rule answer?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError


@dataclass(frozen=True)
class SiteCentroids:
    """Centroids of one site [K, D] and how many of its patches chose each of them [K]."""

    centroids: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Stack:
    """All sites, ordered by name: rows [N, K, D] as sent, counts int64 [N, K]."""

    sites: tuple[str, ...]
    rows: np.ndarray
    counts: NDArray[np.int64]

    @property
    def live(self) -> NDArray[np.bool_]:
        """Which rows mean something [N, K]: some patch chose them and they have a direction.

        A row that never wins an argmax gets no gradient and stays where it was initialised; it says
        nothing about the images, yet lies far from everything, which maximin likes.
        """
        return np.asarray((self.counts > 0) & self.rows.any(axis=2))


@dataclass(frozen=True)
class Merged:
    """New centroids, and what happened to them.

    ``dead`` are the clusters that no site used: they keep the current centroid, except those in
    ``reseeded``, which got a new one. ``displacement`` is the Frobenius norm of the change of the unit
    rows: directions alone decide a cosine argmax, so the figure is comparable between rules. ``state`` is
    what a rule wants back in the next round.
    """

    centroids: np.ndarray
    displacement: float
    dead: tuple[int, ...] = ()
    reseeded: tuple[int, ...] = ()
    state: dict[str, np.ndarray] = field(default_factory=dict)


def stack_sites(sites: Mapping[str, SiteCentroids], current: np.ndarray) -> Stack:
    """Bring the sites into one order, by name; raises `UserError` naming a site that does not fit."""
    if not sites:
        raise UserError("Cannot merge centroids of no site at all; at least one site has to answer.")
    names = tuple(sorted(sites))
    for name in names:
        sent = sites[name]
        if sent.centroids.shape != current.shape or sent.counts.shape != current.shape[:1]:
            raise UserError(
                f"Site '{name}' sent centroids {sent.centroids.shape} with counts {sent.counts.shape}; "
                f"expected {current.shape} with {current.shape[:1]}."
            )
        if not np.isfinite(sent.centroids).all() or sent.counts.min(initial=0) < 0:
            raise UserError(
                f"Centroids of site '{name}' are not finite or their counts are negative; leave the site out."
            )
    rows = np.stack([sites[name].centroids for name in names])
    counts = np.stack([sites[name].counts for name in names]).astype(np.int64)
    return Stack(names, rows, counts)


def unit(rows: np.ndarray) -> NDArray[np.float64]:
    """Return the rows divided by their length, in float64; a zero row stays zero."""
    values = rows.astype(np.float64)
    # scaled by the largest entry first, so that squares of tiny and huge rows neither underflow nor overflow
    scale = np.abs(values).max(axis=-1, keepdims=True, initial=0.0)
    values = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    np.divide(values, length, out=values, where=length > 0)
    return np.asarray(values)


def displacement(current: np.ndarray, new: np.ndarray) -> float:
    """Return by how much the directions of the centroids changed (see `Merged`)."""
    return float(np.linalg.norm(unit(new) - unit(current)))
