"""Cosine cluster loss: how centroids follow the codes where a site optimizes them itself (STEGO's cluster probe)."""

from __future__ import annotations

import torch

from common.losses.base import unit


def cosine_cluster_loss(codes: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Return ``- mean_i max_k <n(z_i), n(mu_k)>`` over codes [M, D] and centroids [K, D].

    Only the centroids learn: codes are detached. Given the assignment the loss is linear in n(mu), so the
    graph holds K x D numbers (the summed unit codes of each cluster) instead of M x K. A centroid that wins
    no code gets no gradient.
    """
    with torch.no_grad():
        directions = unit(codes.detach())
        assignment = (directions @ unit(centroids).T).argmax(dim=1)
        sums = torch.zeros_like(centroids).index_add_(0, assignment, directions)
    return -(sums * unit(centroids)).sum() / len(codes)
