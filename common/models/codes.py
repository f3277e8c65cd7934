"""Codes of an image as clusters see them: centered within the image, and smoothed along its colors.

With z the codes of an image's patches, c their mean colors and m the median of |c_i - c_j|^2 over its pairs of
neighbors, the smoothed codes x are what

    x_i <- (1 - a) z_i + a (x_i + sum_j w_ij x_j) / (1 + sum_j w_ij),   w_ij = exp(-|c_i - c_j|^2 / m)

comes to, j the four neighbors of i: a random walk with restart (Zhou et al., 2004, learning with local and global
consistency), whose weights are those of normalized cuts (Shi and Malik, 2000). All of it happens at a site, image by
image, so that federated training stays equal to pooled training.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from common.settings.schema import RunConfig

# of squared colors in 0..1: an image of one color has a median of 0
_TINY = 1e-8
# higher powers keep what stands out most: steel 31.1 with u^2, 34.1 with u^4, 36.2 with u^6
_POWER = 6
# steps for each unit of a / (1 - a): what is left after so many is below a fifth, and changes no map
_STEPS_PER_ODDS = 1.5


def codes_within(codes: Tensor, colors: Tensor | None, config: RunConfig, centered: bool) -> Tensor:
    """Return codes [B, D, h, w] of a head as they are compared with centroids (see the head of this file).

    ``centered`` codes lose the mean of their image. ``colors`` [B, h*w, 3] in 0..1 are the mean colors of the patches;
    needed where ``codes.reach`` is above 0. Raises ValueError where they are missing.
    """
    if centered:
        codes = codes - codes.mean(dim=(2, 3), keepdim=True)
    if not config.codes.reach:
        return codes
    if colors is None:
        raise ValueError("These codes came without the colors of their patches; smoothing needs them.")
    return smooth_codes(codes, colors, config.codes.reach * codes.shape[-2] / config.model.height)


def picture_codes(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return what stands out in each image: margins [B, h, w], above 0 where it does, and its mean unit code [B, D].

    Where an image shows one kind of thing before a background, u = |s - mean s| of the unit codes s is large at the
    thing or at the background, whichever is rarer. The margin is 2 (u - t), as wide as cosines, t the threshold of Otsu
    (1979) between the powers u^6 of the image.
    """
    units = functional.normalize(codes.flatten(2), dim=1)  # [B, D, n]
    salience = (units - units.mean(dim=2, keepdim=True)).norm(dim=1)
    threshold = otsu(salience**_POWER).pow(1 / _POWER).unsqueeze(1)
    outside = salience > threshold
    mean = functional.normalize((units * outside.unsqueeze(1)).sum(dim=2), dim=1)
    return (2 * (salience - threshold)).unflatten(1, codes.shape[-2:]), mean  # type: ignore[no-untyped-call]


def otsu(values: Tensor) -> Tensor:
    """Return the threshold [B] that parts values [B, n] into two classes of the largest variance between them.

    It lies halfway between two values that follow each other, hence is exact: no histogram. Of equal values it is
    that value.
    """
    if values.shape[1] < 2:
        return values[:, 0]
    ordered = values.double().sort(dim=1).values
    count = ordered.shape[1]
    below = torch.arange(1, count, device=values.device, dtype=torch.float64)
    sums = ordered.cumsum(dim=1)
    low = sums[:, :-1] / below
    high = (sums[:, -1:] - sums[:, :-1]) / (count - below)
    place = (below * (count - below) * (high - low).square()).argmax(dim=1, keepdim=True)
    return ((ordered.gather(1, place) + ordered.gather(1, place + 1)) / 2)[:, 0].to(values.dtype)


def smooth_codes(codes: Tensor, colors: Tensor, reach: float) -> Tensor:
    """Return codes [B, D, h, w] smoothed along the colors [B, h*w, 3] of their patches.

    ``reach`` is in patches: its square is a / (1 - a), since a walk's squared reach grows with that. So a finer grid
    of the same image is smoothed alike.
    """
    odds = reach**2
    share, steps = odds / (1 + odds), math.ceil(_STEPS_PER_ODDS * odds)
    across, down = neighbor_weights(colors, codes.shape[-2:])
    total = 1 + _gathered(across.new_ones(len(codes), 1, *codes.shape[-2:]), across, down)
    smoothed = codes
    for _ in range(steps):
        smoothed = (1 - share) * codes + share * (smoothed + _gathered(smoothed, across, down)) / total
    return smoothed


def neighbor_weights(colors: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return w of right-hand [B, 1, h, w-1] and of lower neighbors [B, 1, h-1, w] (see the head of this file)."""
    maps = colors.transpose(1, 2).unflatten(2, tuple(grid))  # type: ignore[no-untyped-call]
    across = (maps[..., 1:] - maps[..., :-1]).square().sum(1, keepdim=True)
    down = (maps[..., 1:, :] - maps[..., :-1, :]).square().sum(1, keepdim=True)
    median = torch.cat([across.flatten(1), down.flatten(1)], dim=1).median(dim=1).values.view(-1, 1, 1, 1)
    return torch.exp(-across / (median + _TINY)), torch.exp(-down / (median + _TINY))


def _gathered(values: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Return at each cell the weighted sum of its neighbors' values."""
    result = torch.zeros_like(values)
    result[..., :-1] += across * values[..., 1:]
    result[..., 1:] += across * values[..., :-1]
    result[..., :-1, :] += down * values[..., 1:, :]
    result[..., 1:, :] += down * values[..., :-1, :]
    return result
