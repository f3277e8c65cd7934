"""Spectral projection: the linear map of frozen features that separates regions best, from sums alone.

Neighbouring patches of the same colour nearly always belong to the same thing; whatever differs between
them is noise for segmentation. We look for directions in which features vary much over all patches and
little between such neighbours. With C the covariance of all patches and N the mean scatter of the
differences of neighbours i, j, weighted by how alike their colours c are,

    N = sum_ij w_ij (x_i - x_j)(x_i - x_j)^T / sum_ij w_ij,   w_ij = exp(-|c_i - c_j|^2 / (s m)),

m the median of |c_i - c_j|^2 in the image, they solve the generalised eigenproblem  C v = lambda N v, largest
lambda first. Without colours (w = 1) this is the transform by maximum autocorrelation factors (Switzer and
Green, 1984; for images Larsen, 2002), also known as minimum noise fraction (Green et al., 1988); the
weight is that of normalised cuts (Shi and Malik, 2000). C and N are sums over patches, so that sites which
add up theirs get exactly what pooled images would give: no step size, no rounds, no drift between sites.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from common.features.source import Features, tokens_of

_Array = NDArray[np.float64]

# of a channel, in units of which its correlations travel
LEAST_VARIANCE = 1e-8
# keeps variances and medians of 0 (a channel or an image of one value) from being divided by
_TINY = 1e-8


@dataclass(frozen=True)
class PatchScatter:
    """Sums over the patches of a set of images; disjoint sets add up.

    count: patches; total: [C], their features; outer: [C, C], of x x^T; weight: of all pairs of neighbours;
    difference: [C, C], of w (x_i - x_j)(x_i - x_j)^T. All float64.
    """

    count: float
    total: _Array
    outer: _Array
    weight: float
    difference: _Array

    def __add__(self, other: PatchScatter) -> PatchScatter:
        """Join the sums of disjoint sets of images."""
        return PatchScatter(
            self.count + other.count,
            self.total + other.total,
            self.outer + other.outer,
            self.weight + other.weight,
            self.difference + other.difference,
        )

    def to_arrays(self, dtype: type[np.floating] = np.float32) -> dict[str, np.ndarray]:
        """Return what travels: of the symmetric matrices one triangle, in units of the channels."""
        # C(C+1) + 2 C numbers: 0.59 MB for the 384 channels of a small ViT; correlations and scaled differences
        # are of order 1, so that half precision on the wire neither overflows nor cancels
        triangle = np.triu_indices(len(self.total))
        mean = self.total / self.count
        covariance = self.outer / self.count - np.outer(mean, mean)
        scale = np.sqrt(np.maximum(np.diag(covariance), LEAST_VARIANCE))
        units = np.outer(scale, scale)
        return {
            "mean": mean.astype(dtype),
            "scale": scale.astype(dtype),
            "correlation": (covariance / units)[triangle].astype(dtype),
            "difference": (self.difference / max(self.weight, _TINY) / units)[triangle].astype(dtype),
            "weights": np.array([self.count, self.weight]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> PatchScatter:
        """Rebuild the sums from what `to_arrays` returned."""
        count, weight = (float(value) for value in arrays["weights"])
        mean, scale = arrays["mean"].astype(np.float64), arrays["scale"].astype(np.float64)
        units = np.outer(scale, scale)
        covariance = symmetric(arrays["correlation"], len(mean)) * units
        difference = symmetric(arrays["difference"], len(mean)) * units
        return cls(
            count, mean * count, (covariance + np.outer(mean, mean)) * count, weight, difference * weight
        )

    @staticmethod
    def shapes(channels: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of `to_arrays` for C channels."""
        triangle = channels * (channels + 1) // 2
        vector = (channels,)
        return {
            "mean": vector,
            "scale": vector,
            "correlation": (triangle,),
            "difference": (triangle,),
            "weights": (2,),
        }


def symmetric(triangle: np.ndarray, size: int) -> _Array:
    """Fill a symmetric matrix [size, size] from its upper triangle, row by row."""
    full = np.zeros((size, size))
    rows, columns = np.triu_indices(size)
    full[rows, columns] = triangle
    full[columns, rows] = triangle
    return full


def pairs(grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the patch numbers [P] and [P] of all right-hand and lower neighbours on a grid (h, w)."""
    index = torch.arange(grid[0] * grid[1]).reshape(grid)
    left = torch.cat([index[:, :-1].flatten(), index[:-1].flatten()])
    right = torch.cat([index[:, 1:].flatten(), index[1:].flatten()])
    return left, right


def pair_weights(colours: torch.Tensor, grid: tuple[int, int], tolerance: float) -> torch.Tensor:
    """Return how alike neighbours' colours are, in (0, 1]: colours [B, h*w, 3] -> float64 [B, P].

    The scale is the image's own median difference, times ``tolerance``: light and contrast cancel out.
    """
    left, right = pairs(grid)
    distance = (colours[:, left] - colours[:, right]).double().square().sum(-1)
    median = distance.median(dim=1, keepdim=True).values + _TINY
    return torch.exp(-distance / (tolerance * median))


@torch.no_grad()
def patch_scatter(source: Features, tolerance: float, batch: int = 8) -> PatchScatter:
    """Add up C and N over all images of a site (see the head of this file); the source needs colours."""
    left, right = pairs(source.grid)
    total: PatchScatter | None = None
    for start in range(0, len(source), batch):
        indices = list(range(start, min(start + batch, len(source))))
        tokens = tokens_of(source, indices).cpu().double()
        weights = pair_weights(source.colours(indices).cpu(), source.grid, tolerance)
        differences = ((tokens[:, left] - tokens[:, right]) * weights.sqrt().unsqueeze(-1)).flatten(0, 1)
        flat = tokens.flatten(0, 1)
        part = PatchScatter(
            float(len(flat)),
            flat.sum(0).numpy(),
            (flat.T @ flat).numpy(),
            float(weights.sum()),
            (differences.T @ differences).numpy(),
        )
        total = part if total is None else total + part
    if total is None:
        raise ValueError("The shard has no image; the scatter of nothing is not defined.")
    return total


@torch.no_grad()
def patch_moments(source: Features, batch: int = 8) -> PatchScatter:
    """Add up first and second moments over all images of a site; neighbors play no part in it."""
    if not len(source):
        raise ValueError("The shard has no image; the moments of nothing are not defined.")
    total, outer, count = np.zeros(source.channels), np.zeros((source.channels,) * 2), 0
    for start in range(0, len(source), batch):
        indices = list(range(start, min(start + batch, len(source))))
        flat = tokens_of(source, indices).cpu().double().flatten(0, 1)
        total += flat.sum(0).numpy()
        outer += (flat.T @ flat).numpy()
        count += len(flat)
    return PatchScatter(float(count), total, outer, 0.0, np.zeros_like(outer))


def separating_projection(
    scatter: PatchScatter, dim: int, whiten: float = 0.0, ridge: float = 0.02
) -> tuple[_Array, _Array, _Array]:
    """Solve C v = lambda N v on standardised channels.

    Args:
        scatter: sums over all sites.
        dim: number of directions D, at most C.
        whiten: 0 leaves a direction its standard deviation in units of the noise, sqrt(lambda); 1 gives
            all directions the same.
        ridge: share of the identity added to N, so that channels without noise do not win by nothing.

    Returns:
        weight [D, C] and bias [D] of the projection of raw features, mean 0 over all patches; lambda [D].

    Raises:
        ValueError: more directions than channels, or sums that are not finite.
    """
    channels = len(scatter.total)
    if dim > channels:
        raise ValueError(
            f"{dim} directions were asked for but features have {channels} channels; lower model.dim."
        )
    mean = scatter.total / scatter.count
    covariance = scatter.outer / scatter.count - np.outer(mean, mean)
    noise = scatter.difference / max(scatter.weight, _TINY)
    if not (np.isfinite(covariance).all() and np.isfinite(noise).all()):
        raise ValueError("The sums of the patches are not finite; a site's features are broken.")
    scale = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    dead = scale < 1e-6 * max(scale.max(), _TINY)  # channels that never change say nothing
    scale = np.where(dead, 1.0, scale)
    signal = covariance / np.outer(scale, scale)
    noise = noise / np.outer(scale, scale)
    signal[dead], signal[:, dead] = 0.0, 0.0
    noise = noise * (channels / max(np.trace(noise), _TINY)) + ridge * np.eye(channels)
    half = np.linalg.inv(np.linalg.cholesky(noise))
    values, vectors = np.linalg.eigh(half @ signal @ half.T)
    values, vectors = np.maximum(values[::-1][:dim], _TINY), vectors[:, ::-1][:, :dim]
    directions = (half.T @ vectors) * values ** (-whiten / 2)
    strongest = np.abs(directions).argmax(axis=0)
    directions *= np.sign(directions[strongest, np.arange(dim)])  # eigenvectors have no sign of their own
    weight = (directions / scale[:, None]).T
    return weight, -weight @ mean, values
