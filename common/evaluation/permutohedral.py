"""The permutohedral lattice: a Gaussian filter over many scattered points in linear time.

The permutohedral lattice (Adams, Baek and Davis, Eurographics 2010): d-dimensional points are embedded in the
hyperplane sum(x) = 0 of d + 1 dimensions, which a lattice divides into simplices. Values are splatted to the
d + 1 corners of a point's simplex, blurred along the d + 1 lattice directions, and sliced back. Corners exist
where some point touches them, and where several touched ones meet. Every step is a sum of a few weighted rows
of a table: what torch's embedding bags are made for, on any device and faster than its sparse matrices.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NARROWING = 1.05
"""Measured: with the lattice finer than its variance asks for, by this factor, labels of the CRF agree best with
direct sums over all pairs of pixels. The kernel ends abruptly; the Gaussian most like it is narrower."""

MEETING = 3
"""A corner that no point touches exists if it has so many touched neighbours: without it, what goes from one to
another in two steps would be lost. All neighbours would be four times as many corners, for little."""


class Lattice:
    """Gaussian filter of unit variance over the points [N, d] (divide them by the wanted widths first).

    ``backwards`` blurs along the directions in the opposite order, which matters as corners are missing.
    """

    def __init__(self, points: Tensor, backwards: bool = False) -> None:
        count = len(points)
        keys, weights, steps = _corners(points)
        ordered, order = torch.sort(keys.flatten(), stable=True)
        touched, run, lengths = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
        corners = _with_meeting_places(touched, steps)
        place = torch.searchsorted(corners, touched)
        index = torch.empty_like(order)
        index[order] = place[run]
        self.slice = index.view(-1, count).T.contiguous(), weights.T.contiguous()
        ends = torch.zeros_like(corners).index_copy_(0, place, lengths).cumsum(0)
        self.splat = order % count, weights.flatten()[order], torch.cat([ends.new_zeros(1), ends[:-1]])
        blurs = [_blur_along(corners, step) for step in steps]
        self.blurs = blurs[::-1] if backwards else blurs

    def filter(self, values: Tensor) -> Tensor:
        """Return sum_j k(i, j) values_j of values [N, K] up to a constant factor."""
        held = _sums(values, *self.splat)
        for blur in self.blurs:
            held = _sums(held, *blur)
        return _sums(held, *self.slice)


def _sums(table: Tensor, rows: Tensor, weights: Tensor, starts: Tensor | None = None) -> Tensor:
    """Return sums of weighted rows of a table [M, K]: one for each line of ``rows`` [R, n], or for each run of
    ``rows`` [n] that begins at one of ``starts`` [R].
    """
    return F.embedding_bag(rows, table, starts, per_sample_weights=weights, mode="sum")


def _corners(points: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Return keys int64 [d+1, N] and weights [d+1, N] of each point's corners, and the key step of each direction.

    A key packs a corner's first d coordinates into one number, so that a step along a lattice direction adds
    the same amount to every key.
    """
    count, d = points.shape
    size = d + 1
    axis = torch.arange(d, device=points.device, dtype=torch.float32).unsqueeze(1)
    # splat, blur and slice together have variance 2/3 (d+1)^2 in lattice units: scale the points to match
    width = NARROWING * math.sqrt(2 / 3) * size
    scaled = points.float().T * (width / torch.sqrt((axis + 1) * (axis + 2)))
    raised = torch.zeros(size, count, device=points.device)
    raised[:d] = scaled.flip(0).cumsum(0).flip(0)  # coordinate j: the sum from j on, less j times that before
    raised[1:] -= scaled * (axis + 1)
    # nearest corner whose coordinates are multiples of d+1; its coordinates may not sum to 0 yet
    multiple = torch.round(raised / size)
    rank = _rank(raised - multiple * size) + multiple.sum(dim=0)
    wrap = (rank < 0).float() - (rank > d).float()
    multiple, rank = multiple + wrap, (rank + size * wrap).long()
    inside = (raised - multiple * size) / size
    ordered = torch.zeros_like(inside).scatter_(0, rank, inside)  # by rank, the largest first
    # barycentric coordinates are differences of neighbours in that order
    weights = torch.cat([1 + ordered[-1:] - ordered[:1], (ordered[:-1] - ordered[1:]).flip(0)])
    base = (multiple * size).long()[:d]
    # room for a corner, a meeting place next to it, and what is looked for beside that
    low, high = base.amin(dim=1) - 3 * size, base.amax(dim=1) + 3 * size
    span = high - low + 1
    if float(span.double().prod()) > 2**62:
        raise ValueError("The points are spread too widely for this lattice; use larger widths.")
    place = torch.cat([span.new_ones(1), span.cumprod(0)[:-1]]).unsqueeze(1)
    worth = torch.zeros(size, count, dtype=torch.int64, device=points.device)
    worth.scatter_(0, rank[:d], place.expand(d, count))  # by rank: what a coordinate of that rank is worth
    keys = torch.empty_like(worth)
    keys[0] = ((base - low.unsqueeze(1)) * place).sum(dim=0)
    for corner in range(1, size):  # corner k adds k to every coordinate, less d+1 to the k highest ranks
        torch.add(keys[corner - 1] + place.sum(), worth[size - corner], alpha=-size, out=keys[corner])
    steps = torch.cat([size * place.flatten() - place.sum(), -place.sum().view(1)])
    return keys, weights, steps.tolist()


def _rank(gaps: Tensor) -> Tensor:
    """Return for each of the numbers [d+1, N] how many of its column are larger; of equal ones the first leads."""
    rank = torch.zeros_like(gaps)
    for i in range(len(gaps)):
        for j in range(i + 1, len(gaps)):
            larger = gaps[j] > gaps[i]
            rank[i] += larger
            rank[j] += ~larger
    return rank


def _with_meeting_places(touched: Tensor, steps: list[int]) -> Tensor:
    """Add to sorted keys [M] those that `MEETING` of them or more have as neighbours; returns sorted keys."""
    around = torch.cat([touched + sign * step for step in steps for sign in (1, -1)])
    reached, often = torch.unique(around, return_counts=True)
    corners: Tensor = torch.unique(torch.cat([touched, reached[often >= MEETING]]))
    return corners


def _blur_along(corners: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return each corner and its two neighbours in one direction, [M, 3], and their weights 1, 1/2, 1/2.

    ``corners`` are sorted keys. In the place of a missing neighbour the corner itself stands, without weight.
    """
    count = len(corners)
    rows = torch.arange(count, device=corners.device).unsqueeze(1).repeat(1, 3)
    weights = torch.zeros(count, 3, device=corners.device)
    weights[:, 0] = 1
    ahead = torch.searchsorted(corners, corners + step).clamp_(max=count - 1)
    here = (corners[ahead] == corners + step).nonzero().flatten()
    there = ahead[here]
    rows[here, 1], rows[there, 2] = there, here
    weights[here, 1], weights[there, 2] = 0.5, 0.5
    return rows, weights
