"""Cluster sums: what exact k-means needs of a site's patches.

They add up over sites to what one pass over all images would give. Nothing of a single image can be told from
them beyond what a sum tells. Accumulated in float64, image chunks in fixed order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from common.features.codes import unit_codes
from common.features.source import Features
from common.losses.base import unit
from common.models.head import SegmentationHead, load_numpy
from common.settings.schema import RunConfig

# Steps of a unit code's entries to 1 in the sums of several starts: the sums are then exact in any order, and fit into
# float32 on the wire. A step turns a code of 256 entries by 0.5 degrees, which no cluster notices.
GRID = 512.0


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


def spherical_sums(directions: torch.Tensor, centroids: torch.Tensor) -> ClusterSums:
    """Assign unit vectors [M, D] to unit centroids [K, D] (float64) and add them up; ties go to the lower index."""
    return assigned_sums(directions, *(directions @ centroids.T).max(dim=1), len(centroids))


def assigned_sums(
    directions: torch.Tensor, cosines: torch.Tensor, assignment: torch.Tensor, clusters: int
) -> ClusterSums:
    """Add up unit vectors [M, D] and their cosines [M] by the cluster that each is assigned to [M]."""
    sums = directions.new_zeros(clusters, directions.shape[1]).index_add_(0, assignment, directions)
    totals = cosines.new_zeros(clusters).index_add_(0, assignment, cosines)
    counts = torch.bincount(assignment, minlength=clusters)
    return ClusterSums(sums.cpu().numpy(), counts.cpu().numpy(), totals.cpu().numpy())


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
    int32 [S, M * (M + 1) / 2], the pairs of neighboring patches by their clusters, the triangle above the diagonal row
    by row, and ``overlaps`` int32 [S, R, K, K], the patches by their clusters under a start and under each of the R of
    its family. Codes are rounded to a `GRID`, towards 0.
    """
    means = unit(torch.from_numpy(np.asarray(arrays["centroids"], dtype=np.float64)).to(features.device))
    groups = torch.from_numpy(np.asarray(arrays["groups"], dtype=np.int64)).to(features.device)
    families = config.centerings
    parts = [
        _sums_of_family(features, unit_codes(features, head, config, centered), own, joined, config)
        for centered, own, joined in zip(
            families,
            means.view(len(families), starts // len(families), -1, means.shape[1]),
            groups.view(len(families), starts // len(families), -1),
            strict=True,
        )
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _sums_of_family(
    features: Features,
    batches: Iterable[torch.Tensor],
    means: torch.Tensor,
    groups: torch.Tensor,
    config: RunConfig,
) -> dict[str, np.ndarray]:
    """Return the arrays of `sums_of_starts` for starts [R, M, D] of codes that are treated alike."""
    starts, size, dim = means.shape
    kinds, device = config.fitted_clusters, features.device
    totals = [ClusterSums(np.zeros((size, dim)), np.zeros(size, np.int64), np.zeros(size)) for _ in means]
    shares = torch.zeros(starts, kinds, dtype=torch.int64, device=device)
    entropies = torch.zeros(starts, dtype=torch.float64, device=device)
    overlaps = torch.zeros(starts, starts, kinds, kinds, dtype=torch.int64, device=device)
    beside = torch.zeros(starts, size * (size + 1) // 2, dtype=torch.int64, device=device)
    for exact in batches:
        codes = (exact * GRID).trunc() / GRID  # towards 0: no code gets longer than 1, which servers check
        cosines = (codes @ means.flatten(0, 1).T).unflatten(2, (starts, size))  # type: ignore[no-untyped-call]
        best = cosines.max(dim=3)
        flat, nearest = codes.flatten(0, 1), best.indices
        for start in range(starts):
            own = (best.values[..., start].flatten(), nearest[..., start].flatten())
            totals[start] += assigned_sums(flat, *own, size)
        cluster = groups.expand(len(codes), -1, -1).gather(2, nearest.transpose(1, 2))
        counts = image_shares(cluster, kinds)
        shares += counts.sum(dim=0)
        portions = counts.double() / codes.shape[1]
        entropies += -torch.special.xlogy(portions, portions).sum(dim=(0, 2))
        overlaps += pair_overlaps(cluster, kinds)
        if config.things.each_picture == "several":  # else an image is one code, and has no neighbors in it
            beside += neighbor_counts(nearest.unflatten(1, features.grid), size)  # type: ignore[no-untyped-call]
    joined = {key: np.concatenate([total.arrays()[key] for total in totals]) for key in totals[0].arrays()}
    return joined | {
        "shares": shares.cpu().numpy(),
        "entropies": entropies.cpu().numpy(),
        "adjacency": beside.cpu().numpy().astype(np.int32),
        "overlaps": overlaps.cpu().numpy().astype(np.int32),
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
    """Count pairs of neighbors by their two centroids: [B, h, w, S] of numbers below M = ``size`` -> int64 [S, T].

    T are the M * (M + 1) / 2 unordered pairs, row by row of the triangle above the diagonal.
    """
    starts = nearest.shape[3]
    pairs = []
    for first, second in (
        (nearest[:, :, :-1], nearest[:, :, 1:]),
        (nearest[:, :-1], nearest[:, 1:]),
    ):
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        pairs.append((low * size - low * (low - 1) // 2 + high - low).flatten(0, 2))
    codes = torch.cat(pairs)
    kinds = size * (size + 1) // 2
    return torch.stack([torch.bincount(codes[:, start], minlength=kinds) for start in range(starts)])


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
