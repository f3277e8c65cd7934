"""Sampling: the positions, and the pairs of images of a batch, at which correspondences are looked at.

All draws come from the generator given, on the CPU. Coordinates are (x, y) in [-1, 1] with the outer
patch centres at -1 and 1 (``align_corners``); values between patches are bilinear.
"""

from __future__ import annotations

import torch


def uniform_coords(batch: int, points: int, generator: torch.Generator) -> torch.Tensor:
    """Draw ``points`` positions per image: float32 [batch, points, 2], uniform in [-1, 1]."""
    return torch.rand(batch, points, 2, generator=generator) * 2 - 1


def salient_coords(
    salience: torch.Tensor, points: int, generator: torch.Generator, uniform_share: float = 0.1
) -> torch.Tensor:
    """Draw positions from the salient patches of each image, a share of them uniform: [B, points, 2].

    ``salience`` is bool [B, h, w]; an image without any salient patch counts as wholly salient. Patches are
    drawn with replacement, at their centres.
    """
    batch, height, width = salience.shape
    flat = salience.flatten(1).float()
    flat = torch.where(flat.any(1, keepdim=True), flat, torch.ones_like(flat))
    chosen = torch.multinomial(flat, points, replacement=True, generator=generator)
    size = torch.tensor([max(width - 1, 1), max(height - 1, 1)])
    # the published code divides both indices by the height and so never reaches the last row nor, in wide images,
    # stays inside; here centers map to centers
    centres = torch.stack([chosen % width, chosen // width], dim=-1) / size * 2 - 1
    uniform = torch.rand(batch, points, 1, generator=generator) < uniform_share
    return torch.where(uniform, uniform_coords(batch, points, generator), centres)


def derangements(batch: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw ``count`` permutations without a fixed point, uniformly: int64 [count, batch].

    They pair every image with another one, each exactly once. A batch of one has no other image, so that
    the result is then empty ([0, 1]): it never stands in as its own negative. (STEGO draws otherwise, see
    `published_partners`.)
    """
    if batch < 2:
        return torch.empty(0, batch, dtype=torch.long)
    identity = torch.arange(batch)
    found: list[torch.Tensor] = []
    while len(found) < count:  # a permutation has no fixed point with probability about 1/e
        candidate = torch.randperm(batch, generator=generator)
        if not (candidate == identity).any():
            found.append(candidate)
    return torch.stack(found) if found else torch.empty(0, batch, dtype=torch.long)


def published_partners(batch: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw ``count`` rows of negative partners as STEGO's code does: int64 [count, batch].

    A random permutation whose fixed points move one further, modulo the batch. For two images or more no one
    is its own partner, but a moved one may meet the partner of another image, so that some images are drawn
    twice and others never. A single image is its own negative.
    """
    identity = torch.arange(batch)
    drawn = [torch.randperm(batch, generator=generator) for _ in range(count)]
    return torch.stack([torch.where(row == identity, row + 1, row) % batch for row in drawn])


def bilinear(coords: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which four patches make up each position, and by how much: int64 and float32 [B, P, 4].

    Indices count row by row within an image. The same numbers as
    ``grid_sample(mode="bilinear", padding_mode="border", align_corners=True)``, but on token-major
    features, where a corner is one contiguous row.
    """
    height, width = grid
    x = ((coords[..., 0] + 1) / 2 * (width - 1)).clamp(0, width - 1)
    y = ((coords[..., 1] + 1) / 2 * (height - 1)).clamp(0, height - 1)
    left, top = x.floor(), y.floor()
    right_share, bottom_share = x - left, y - top
    column, row = left.long(), top.long()
    next_column, next_row = (column + 1).clamp(max=width - 1), (row + 1).clamp(max=height - 1)
    indices = [row * width + column, row * width + next_column, next_row * width + column]
    indices.append(next_row * width + next_column)
    weights = [(1 - right_share) * (1 - bottom_share), right_share * (1 - bottom_share)]
    weights += [(1 - right_share) * bottom_share, right_share * bottom_share]
    return torch.stack(indices, dim=-1), torch.stack(weights, dim=-1)


def gather(
    tokens: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, images: torch.Tensor | None = None
) -> torch.Tensor:
    """Interpolate token-major maps [B, n, C] at the positions of `bilinear` (both [R, P, 4]): [R, P, C].

    Row r is read from image ``images[r]``, or from image r (then R = B).
    """
    batch, patches, channels = tokens.shape
    if images is None:
        images = torch.arange(batch, device=tokens.device)
    rows = torch.nn.functional.embedding_bag(
        (indices + images.view(-1, 1, 1) * patches).flatten(0, 1),
        tokens.reshape(batch * patches, channels),
        mode="sum",
        per_sample_weights=weights.flatten(0, 1).to(tokens.dtype),
    )
    return rows.view(len(images), -1, channels)
