"""Cluster sums: what exact k-means needs of a site's patches.

They add up over sites to what one pass over all images would give. Nothing of a single image can be told from
them beyond what a sum tells. Accumulated in float64, image chunks in fixed order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from common.features.codes import unit_codes
from common.features.source import Features
from common.losses.base import unit
from common.models.head import SegmentationHead, load_numpy
from common.settings.schema import RunConfig


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


def spherical_sums(directions: torch.Tensor, centroids: torch.Tensor, starts: int = 1) -> ClusterSums:
    """Assign unit vectors [M, D] to unit centroids [K, D] (float64) and add them up; ties go to the lower index.

    The centroids may be those of several ``starts`` one after the other, to each of which every vector is assigned.
    """
    size = len(centroids) // starts
    best = (directions @ centroids.T).unflatten(1, (starts, size)).max(dim=2)  # type: ignore[no-untyped-call]
    sums, totals = torch.zeros_like(centroids), directions.new_zeros(len(centroids))
    counts = np.zeros(len(centroids), dtype=np.int64)
    for start in range(starts):
        own = slice(start * size, (start + 1) * size)
        assignment, cosines = best.indices[:, start], best.values[:, start]
        sums[own].index_add_(0, assignment, directions)
        totals[own].index_add_(0, assignment, cosines)
        counts[own] = torch.bincount(assignment, minlength=size).cpu().numpy()
    return ClusterSums(sums.cpu().numpy(), counts, totals.cpu().numpy())


@torch.no_grad()
def sums_under(
    features: Features, head: SegmentationHead, centroids: np.ndarray, config: RunConfig
) -> ClusterSums:
    """Run one exact E-step of spherical k-means over all patches of a shard, with dropout off.

    ``centroids`` is [K, D] of any length per row. Raises ValueError where the codes are not finite.
    """
    means = unit(torch.from_numpy(np.asarray(centroids, dtype=np.float64)).to(features.device))
    clusters, dim = means.shape
    total = ClusterSums(np.zeros((clusters, dim)), np.zeros(clusters, dtype=np.int64), np.zeros(clusters))
    for codes in unit_codes(features, head, config):
        total += spherical_sums(codes.flatten(0, 1), means)
    return total


@torch.no_grad()
def sums_of_starts(
    features: Features,
    head: SegmentationHead,
    arrays: Mapping[str, np.ndarray],
    starts: int,
    config: RunConfig,
) -> dict[str, np.ndarray]:
    """Run one exact E-step for several starts one after the other, and tell how their clusters share the images.

    ``arrays`` holds the ``centroids`` [S * M, D] and ``groups`` [S * M] of all starts: as many of each of
    ``config.centerings``. Beside the sums of `ClusterSums` returns ``shares`` int64 [S, K], the patches of each joined
    cluster, ``entropies`` float64 [S], the entropy in nats of an image's shares, added up over images, ``adjacency``
    int32 [S * M, M], the pairs of neighboring patches by their clusters, and ``overlaps`` int32 [S, R, K, K], the
    patches by their clusters under a start and under each of the R of its family.
    """
    means = unit(torch.from_numpy(np.asarray(arrays["centroids"], dtype=np.float64)).to(features.device))
    groups = torch.from_numpy(np.asarray(arrays["groups"], dtype=np.int64)).to(features.device)
    kinds, families = config.fitted_clusters, config.centerings
    parts, shares, entropies, adjacency, overlaps = [], [], [], [], []
    for centered, own, joined in zip(
        families, means.chunk(len(families)), groups.chunk(len(families)), strict=True
    ):
        each = starts // len(families)
        total = ClusterSums(np.zeros(own.shape), np.zeros(len(own), dtype=np.int64), np.zeros(len(own)))
        used = torch.zeros(each, kinds, dtype=torch.int64, device=features.device)
        spread = torch.zeros(each, dtype=torch.float64, device=features.device)
        common = torch.zeros(each, each, kinds, kinds, dtype=torch.int64, device=features.device)
        beside = torch.zeros(
            each, len(own) // each, len(own) // each, dtype=torch.int64, device=features.device
        )
        for codes in unit_codes(features, head, config, centered):
            total += spherical_sums(codes.flatten(0, 1), own, each)
            nearest = (codes @ own.T).unflatten(2, (each, -1)).argmax(dim=3)  # type: ignore[no-untyped-call]
            cluster = joined.view(each, -1).expand(len(codes), -1, -1).gather(2, nearest.transpose(1, 2))
            counts = image_shares(cluster, kinds)
            common += pair_overlaps(cluster, kinds)
            if codes.shape[1] == features.grid[0] * features.grid[1]:  # not one code for a whole image
                beside += neighbor_counts(nearest.unflatten(1, features.grid), len(own) // each)  # type: ignore[no-untyped-call]
            used += counts.sum(dim=0)
            portions = counts.double() / codes.shape[1]
            spread += -torch.special.xlogy(portions, portions).sum(dim=(0, 2))
        parts.append(total)
        shares.append(used.cpu().numpy())
        entropies.append(spread.cpu().numpy())
        adjacency.append(beside.flatten(0, 1).cpu().numpy().astype(np.int32))
        overlaps.append(common.cpu().numpy().astype(np.int32))
    joined_parts = {key: np.concatenate([part.arrays()[key] for part in parts]) for key in parts[0].arrays()}
    return joined_parts | {
        "shares": np.concatenate(shares),
        "entropies": np.concatenate(entropies),
        "adjacency": np.concatenate(adjacency),
        "overlaps": np.concatenate(overlaps),
    }


def image_shares(cluster: torch.Tensor, clusters: int) -> torch.Tensor:
    """Count the patches of each joined cluster in each image: [B, S, n] of numbers below K -> int64 [B, S, K]."""
    counts = torch.zeros(*cluster.shape[:2], clusters, dtype=torch.int64, device=cluster.device)
    return counts.scatter_add_(2, cluster, torch.ones_like(cluster))


def pair_overlaps(cluster: torch.Tensor, clusters: int) -> torch.Tensor:
    """Count patches by their clusters under every two starts: [B, S, n] of numbers below K -> int64 [S, S, K, K]."""
    flat = cluster.transpose(0, 1).flatten(1)
    marks = torch.nn.functional.one_hot(flat, clusters).double()  # exact: counts stay far below 2^53
    return torch.einsum("ank,bnl->abkl", marks, marks).long()


def neighbor_counts(nearest: torch.Tensor, size: int) -> torch.Tensor:
    """Count pairs of neighbors by their centroids, either way round: [B, h, w, S] -> int64 [S, M, M], M = ``size``."""
    starts = nearest.shape[3]
    pairs = []
    for first, second in (
        (nearest[:, :, :-1], nearest[:, :, 1:]),
        (nearest[:, :-1], nearest[:, 1:]),
    ):
        pairs.append((first * size + second).flatten(0, 2))
    codes = torch.cat(pairs)
    found = torch.stack([torch.bincount(codes[:, start], minlength=size**2) for start in range(starts)])
    square = found.view(starts, size, size)
    return square + square.transpose(1, 2)


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
    return sums_under(features, received_head(features, head, config), centroids, config)
