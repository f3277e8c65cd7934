"""Cluster sums: what exact k-means needs of a site's patches.

They add up over sites to what one pass over all images would give. Nothing of a single image can be told from
them beyond what a sum tells. Accumulated in float64, image chunks in fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from common.features.source import Features, tokens_of
from common.losses.base import unit
from common.models.head import SegmentationHead, load_numpy
from common.settings.schema import RunConfig

_BATCH = 32  # images in memory at a time; another number changes sums by rounding alone


@dataclass(frozen=True)
class ClusterSums:
    """One exact E-step of spherical k-means on a shard, for K clusters of D-dimensional codes."""

    sums: np.ndarray  # float64 [K, D], the unit codes of each cluster added up
    counts: np.ndarray  # int64 [K], its patches
    cosines: np.ndarray  # float64 [K], the cosines of its codes to its centroid added up

    def __add__(self, other: ClusterSums) -> ClusterSums:
        """Join the sums of disjoint sets of images."""
        return ClusterSums(self.sums + other.sums, self.counts + other.counts, self.cosines + other.cosines)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays as they travel."""
        return {"sums": self.sums, "counts": self.counts, "cosines": self.cosines}

    @property
    def mean_cosine(self) -> float:
        """The mean cosine of a patch to its centroid, the quantity that k-means raises."""
        return float(self.cosines.sum()) / max(int(self.counts.sum()), 1)


def chunks(count: int, size: int) -> Iterator[list[int]]:
    """Split ``range(count)`` into consecutive lists of at most ``size``."""
    for start in range(0, count, size):
        yield list(range(start, min(start + size, count)))


def spherical_sums(directions: torch.Tensor, centroids: torch.Tensor) -> ClusterSums:
    """Assign unit vectors [M, D] to unit centroids [K, D] (float64) and add them up; ties go to the lower index."""
    cosines, assignment = (directions @ centroids.T).max(dim=1)
    sums = torch.zeros_like(centroids).index_add_(0, assignment, directions)
    totals = cosines.new_zeros(len(centroids)).index_add_(0, assignment, cosines)
    counts = torch.bincount(assignment, minlength=len(centroids))
    return ClusterSums(sums.cpu().numpy(), counts.cpu().numpy(), totals.cpu().numpy())


@torch.no_grad()
def sums_under(features: Features, head: SegmentationHead, centroids: np.ndarray) -> ClusterSums:
    """Run one exact E-step of spherical k-means over all patches of a shard, with dropout off.

    ``centroids`` is [K, D] of any length per row. Raises ValueError where the codes are not finite.
    """
    training = head.training
    head.eval()
    means = unit(torch.from_numpy(np.asarray(centroids, dtype=np.float64)).to(features.device))
    clusters, dim = means.shape
    total = ClusterSums(np.zeros((clusters, dim)), np.zeros(clusters, dtype=np.int64), np.zeros(clusters))
    try:
        for indices in chunks(len(features), _BATCH):
            codes = head.project(tokens_of(features, indices)).flatten(0, 1).double()
            if not torch.isfinite(codes).all():
                raise ValueError(
                    f"The head gives codes that are not finite for images {indices[0]} to {indices[-1]}; "
                    "its parameters or the cached features are broken."
                )
            total += spherical_sums(unit(codes), means)
    finally:
        head.train(training)
    return total


def received_head(
    features: Features, arrays: Mapping[str, np.ndarray], config: RunConfig
) -> SegmentationHead:
    """Build the head that came as arrays, for these features and on their device."""
    model = config.model
    head = SegmentationHead(features.channels, model.dim, model.dropout, model.nonlinear)
    load_numpy(head, arrays)
    return head.to(features.device)


def cluster_sums(
    features: Features, head: Mapping[str, np.ndarray], centroids: np.ndarray, config: RunConfig
) -> ClusterSums:
    """Run one exact E-step under a head that came as arrays (see `sums_under`)."""
    return sums_under(features, received_head(features, head, config), centroids)
