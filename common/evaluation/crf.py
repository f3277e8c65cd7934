"""The dense CRF, which sharpens a coarse segmentation along the edges of the image.

A fully connected conditional random field (Kraehenbuehl and Koltun, NeurIPS 2011) over all pixels i:

    E(y) = sum_i u_i(y_i) + sum_{i<j} [y_i != y_j] ( w_s k_s(i, j) + w_b k_b(i, j) )
    k_s = exp(-|p_i - p_j|^2 / 2 s^2),   k_b = exp(-|p_i - p_j|^2 / 2 a^2 - |c_i - c_j|^2 / 2 b^2)

with positions p in pixels and colors c in 0..255, each kernel normalized on both sides, D^-1/2 k D^-1/2.
Mean field repeats Q_i <- softmax(-u_i + w_s (k_s Q)_i + w_b (k_b Q)_i). k_s is a small window; k_b,
which joins far pixels of like color, is applied on a permutohedral lattice (`common/evaluation/permutohedral.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common.data.crops import Bytes
from common.evaluation.permutohedral import Lattice
from common.models.segmenter import COSINE_SHARPNESS
from common.seeds import torch_generator

LATTICES = 2
"""How many lattices take turns; see `_Bilateral`."""


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
