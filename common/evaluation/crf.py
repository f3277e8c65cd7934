"""The dense CRF, which sharpens a coarse segmentation along the edges of the image.

A fully connected conditional random field (Kraehenbuehl and Koltun, NeurIPS 2011) over all pixels i:

    E(y) = sum_i u_i(y_i) + sum_{i<j} [y_i != y_j] ( w_s k_s(i, j) + w_b k_b(i, j) )
    k_s = exp(-|p_i - p_j|^2 / 2 s^2),   k_b = exp(-|p_i - p_j|^2 / 2 a^2 - |c_i - c_j|^2 / 2 b^2)

with positions p in pixels and colors c in 0..255, each kernel normalized on both sides, D^-1/2 k D^-1/2.
Mean field repeats Q_i <- softmax(-u_i + w_s (k_s Q)_i + w_b (k_b Q)_i). k_s is a small window; k_b,
which joins far pixels of like color, is applied on a permutohedral lattice (Adams, Baek and Davis, Eurographics
2010): points are embedded in the hyperplane sum(x) = 0 of d + 1 dimensions, which a lattice divides into simplices.
Values are splatted to the d + 1 corners of a point's simplex, blurred along the d + 1 lattice directions, and sliced
back. Corners exist where some point touches them, and where several touched ones meet. Every step is a sum of a few
weighted rows of a table: what torch's embedding bags are made for, on any device and faster than its sparse matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common.data.images import Bytes
from common.models.segmenter import COSINE_SHARPNESS
from common.seeds import torch_generator

# how many lattices take turns; see `_Bilateral`
LATTICES = 2


@dataclass(frozen=True)
class CrfSettings:
    """Weights and widths; the defaults are those of STEGO's and FUSS's evaluation."""

    iterations: int = 10
    smooth_weight: float = 3.0
    smooth_pixels: float = 1.0
    bilateral_weight: float = 4.0
    bilateral_pixels: float = 67.0
    bilateral_colour: float = 3.0
    max_pixels: int = 400_000
    """Larger images are refined at this size and the marginals enlarged: memory stays below 2 GB."""


DEFAULT = CrfSettings()


def refine(cosines: Tensor, image: Bytes, settings: CrfSettings = DEFAULT) -> Bytes:
    """Return the most probable cluster of every pixel, uint8 [H, W].

    Args:
        cosines: [K, H, W] in -1..1; the unary is -log softmax(2 cosine) over K, as in the reference.
        image: RGB, uint8 [H, W, 3].
        settings: weights and widths.
    """
    return refine_logits(COSINE_SHARPNESS * cosines.float(), image, settings)


def refine_logits(logits: Tensor, image: Bytes, settings: CrfSettings = DEFAULT) -> Bytes:
    """Return the most probable class of every pixel, uint8 [H, W]; the unary is -log softmax(logits).

    Args:
        logits: [K, H, W]; log-probabilities are logits too.
        image: RGB, uint8 [H, W, 3].
        settings: weights and widths.
    """
    height, width = image.shape[:2]
    shrink = math.sqrt(settings.max_pixels / (height * width))
    logits = logits.float()
    if shrink < 1:
        size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        logits = F.interpolate(logits.unsqueeze(0), size=size, mode="area")[0]
        image = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BOX))
    marginals = mean_field(-torch.log_softmax(logits, dim=0), image, settings)
    if shrink < 1:
        marginals = F.interpolate(marginals.unsqueeze(0), size=(height, width), mode="bilinear")[0]
    labels: Bytes = marginals.argmax(dim=0).to(torch.uint8).cpu().numpy()
    return labels


@torch.no_grad()
def mean_field(unary: Tensor, image: Bytes, settings: CrfSettings = DEFAULT) -> Tensor:
    """Return the approximate marginals Q [K, H, W] for unary energies [K, H, W]."""
    clusters, height, width = unary.shape
    if image.shape != (height, width, 3):
        raise ValueError(
            f"The picture is {image.shape}, the unary {tuple(unary.shape)}; expected the same size."
        )
    smooth = _Smoothing(height, width, settings.smooth_pixels, unary.device)
    bilateral = _Bilateral(image, settings.bilateral_pixels, settings.bilateral_colour, unary.device)
    energy = unary.float().reshape(clusters, -1).T.contiguous()  # [N, K]: a pixel is a row
    marginals = torch.softmax(-energy, dim=1)
    for step in range(settings.iterations):
        last = step == settings.iterations - 1
        message = bilateral(marginals, None if last else step).mul_(settings.bilateral_weight)
        message.add_(smooth(marginals), alpha=settings.smooth_weight)
        marginals = torch.softmax(message.sub_(energy), dim=1)
    return marginals.T.reshape(clusters, height, width)


class _Smoothing:
    """k_s, normalized on both sides: one Gaussian window on the grid."""

    def __init__(self, height: int, width: int, sigma: float, device: torch.device) -> None:
        self.size = (height, width)
        self.radius = max(1, math.ceil(3 * sigma))  # at sigma 1 the tail beyond weighs less than exp(-8)
        offsets = torch.arange(-self.radius, self.radius + 1, device=device) / sigma
        window = torch.exp(-0.5 * offsets**2)
        self.window = window.unsqueeze(1) * window
        self.scale = torch.ones(height * width, 1, device=device)
        self.scale = self(self.scale).rsqrt_()

    def __call__(self, values: Tensor) -> Tensor:
        """Filter [N, K]."""
        clusters = values.shape[1]
        maps = (values * self.scale).view(1, *self.size, clusters).permute(0, 3, 1, 2)  # channels stay last
        windows = self.window.expand(clusters, 1, -1, -1).contiguous(memory_format=torch.channels_last)
        found = F.conv2d(maps, windows, padding=self.radius, groups=clusters)
        return found.permute(0, 2, 3, 1).reshape(values.shape).mul_(self.scale)


class _Bilateral:
    """k_b, normalized on both sides, on permutohedral lattices over position and color.

    One lattice blurs a little more in some directions than in others, depending on where a point lies in its
    simplex. Several lattices, shifted against each other, blur alike on average: the iterations take turns with
    them, and the last one, which decides, takes their mean. Turns cost no more steps than a single lattice.
    """

    def __init__(self, image: Bytes, pixels: float, colour: float, device: torch.device) -> None:
        height, width = image.shape[:2]
        rows = torch.arange(height).view(-1, 1).expand(height, width).reshape(-1, 1) / pixels
        columns = torch.arange(width).expand(height, width).reshape(-1, 1) / pixels
        colours = torch.from_numpy(np.array(image)).reshape(-1, 3).float() / colour
        points = torch.cat([rows, columns, colours], dim=1).to(device)
        shifts = torch.rand(LATTICES, points.shape[1], generator=torch_generator(0, "crf lattices")) * 3
        self.lattices = [
            Lattice(points + shift.to(device), backwards=bool(index % 2))
            for index, shift in enumerate(shifts)
        ]
        self.scale = torch.ones(height * width, 1, device=device)
        self.scale = self(self.scale, None).clamp_(min=1e-12).rsqrt_()

    def __call__(self, values: Tensor, turn: int | None) -> Tensor:
        """Filter [N, K] by the lattice whose turn it is, or (None) by the mean of all."""
        scaled = values * self.scale
        if turn is not None:
            return self.lattices[turn % LATTICES].filter(scaled).mul_(self.scale)
        total = self.lattices[0].filter(scaled)
        for lattice in self.lattices[1:]:
            total.add_(lattice.filter(scaled))
        return total.mul_(self.scale).div_(LATTICES)


# Measured: with the lattice finer than its variance asks for, by this factor, labels of the CRF agree best with
# direct sums over all pairs of pixels. The kernel ends abruptly; the Gaussian most like it is narrower.
NARROWING = 1.05

# A corner that no point touches exists if it has so many touched neighbours: without it, what goes from one to
# another in two steps would be lost. All neighbours would be four times as many corners, for little.
MEETING = 3


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
    if float(span.double().prod()) > 2**62:  # keys are int64, and steps lead beyond the span
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
