"""How is a Gaussian filter over many scattered points computed in linear time?

The permutohedral lattice (Adams, Baek and Davis, Eurographics 2010): d-dimensional points are embedded in the
hyperplane sum(x) = 0 of d + 1 dimensions, which a lattice divides into simplices. Values are splatted to the
d + 1 corners of a point's simplex, blurred along the d + 1 lattice directions, and sliced back. Only corners
that some point touches exist. Here every step is a sparse matrix, so that torch does the work on any device.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

NARROWING = 1.04
"""Measured: at the nominal scale the lattice blurs photographs slightly too widely. With this factor labels of
`common/crf.py` agree best with direct sums over all pairs of pixels."""


class Lattice:
    """Gaussian filter of unit variance over the points [N, d] (divide them by the wanted widths first).

    ``backwards`` blurs along the directions in the opposite order, which matters as corners are missing.
    """

    def __init__(self, points: Tensor, backwards: bool = False) -> None:
        count, dimensions = points.shape
        corners = dimensions + 1
        keys, weights, strides = _corners(points)
        vertices, index = torch.unique(keys, return_inverse=True)
        flat, spread = index.reshape(-1), weights.reshape(-1)
        pixel_start = torch.arange(0, count * corners + 1, corners, device=points.device)
        order = torch.argsort(flat, stable=True)
        vertex_start = _starts(torch.bincount(flat, minlength=len(vertices)))
        self.slice = _sparse(pixel_start, flat, spread, (count, len(vertices)))
        self.splat = _sparse(vertex_start, order // corners, spread[order], (len(vertices), count))
        blurs = [_blur_along(vertices, int(stride)) for stride in strides]
        self.blurs = blurs[::-1] if backwards else blurs

    def filter(self, values: Tensor) -> Tensor:
        """Return sum_j k(i, j) values_j of values [N, K] up to a constant factor."""
        held = self.splat @ values
        for blur in self.blurs:
            held = blur @ held
        return self.slice @ held


def _corners(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys int64 [N, d+1] and weights [N, d+1] of each point's corners, and the key step of each direction.

    A key packs a corner's first d coordinates into one number, so that a step along a lattice direction adds
    the same amount to every key.
    """
    count, d = points.shape
    size = d + 1
    axis = torch.arange(d, device=points.device, dtype=torch.float32)
    # the blur along each direction has variance 2/3 (d+1)^2 in lattice units: scale the points to match
    scaled = points.float() * (NARROWING * math.sqrt(2 / 3) * size / torch.sqrt((axis + 1) * (axis + 2)))
    behind = torch.cat(
        [scaled.flip(1).cumsum(1).flip(1), scaled.new_zeros(count, 1)], dim=1
    )  # sum over i >= j
    before = torch.cat([scaled.new_zeros(count, 1), scaled * (axis + 1)], dim=1)
    raised = behind - before
    # nearest corner whose coordinates are multiples of d+1; its coordinates may not sum to 0 yet
    multiple = torch.round(raised / size)
    excess = multiple.sum(dim=1, keepdim=True)
    rank = _rank((raised - multiple * size).T).T + excess
    wrap = (rank < 0).float() - (rank > d).float()
    multiple, rank = multiple + wrap, (rank + size * wrap).long()
    inside = (raised - multiple * size) / size
    ordered = torch.zeros_like(inside).scatter_(1, rank, inside)  # by rank, the largest first
    # barycentric coordinates are differences of neighbours in that order
    first = 1 + ordered[:, -1:] - ordered[:, :1]
    weights = torch.cat([first, (ordered[:, :-1] - ordered[:, 1:]).flip(1)], dim=1)
    base = (multiple * size).long()[:, :d]
    low, high = base.amin(dim=0) - 2 * size, base.amax(dim=0) + 2 * size
    span = high - low + 1
    if float(span.double().prod()) > 2**62:
        raise ValueError("The points are spread too widely for this lattice; use larger widths.")
    place = torch.cat([span.new_ones(1), span.cumprod(0)[:-1]])
    start = ((base - low) * place).sum(dim=1)
    jump = torch.zeros(count, size, dtype=torch.int64, device=points.device)
    jump.scatter_(1, rank[:, :d], place.expand(count, d))  # by rank: what a coordinate of that rank is worth
    worth = jump.flip(1).cumsum(1)  # [N, k]: worth of the k+1 highest ranks
    # corner k adds k to every coordinate, and takes d+1 from those of the k highest ranks
    remainder = torch.arange(size, device=points.device)
    taken = torch.cat([worth.new_zeros(count, 1), worth[:, :-1]], dim=1)
    keys = start.unsqueeze(1) + remainder * place.sum() - size * taken
    directions = torch.cat([size * place - place.sum(), -place.sum().view(1)])
    return keys, weights, directions


def _rank(gaps: Tensor) -> Tensor:
    """Return for each of the numbers [d+1, N] how many of its column are larger; of equal ones the first leads."""
    rows = gaps.contiguous()
    rank = torch.zeros_like(rows)
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            larger = rows[j] > rows[i]
            rank[i] += larger
            rank[j] += ~larger
    return rank


def _blur_along(vertices: Tensor, stride: int) -> Tensor:
    """Return the matrix of the kernel (1/2, 1, 1/2) along one direction; ``vertices`` are sorted keys."""
    count = len(vertices)
    columns, present = (
        [torch.arange(count, device=vertices.device)],
        [torch.ones_like(vertices, dtype=torch.bool)],
    )
    for step in (stride, -stride):
        wanted = vertices + step
        found = torch.searchsorted(vertices, wanted).clamp_(max=count - 1)
        columns.append(found)
        present.append(vertices[found] == wanted)
    column, there = torch.stack(columns, dim=1), torch.stack(present, dim=1)
    value = torch.tensor([1.0, 0.5, 0.5], device=vertices.device).expand(count, 3)
    return _sparse(_starts(there.sum(dim=1)), column[there], value[there], (count, count))


def _starts(lengths: Tensor) -> Tensor:
    """Return where each row of a sparse matrix starts, given the rows' lengths."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _sparse(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its CSR format a beta on every first use
        return torch.sparse_csr_tensor(starts, columns, values.contiguous(), shape)
