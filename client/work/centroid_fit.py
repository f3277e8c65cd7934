"""The site's own steps on the centroids, beside those on the head."""

from __future__ import annotations

import torch
from torch import nn

from common.losses.base import Batch, Objective
from common.losses.centroids import cosine_cluster_loss
from common.losses.modularity import ModularitySettings, modularity_loss, one_per_cell
from common.settings.schema import RunConfig


class CentroidFit:
    """Moves a site's centroids: not at all (``fixed``), as the objective does, or by Adam."""

    def __init__(self, means: nn.Parameter, objective: Objective, config: RunConfig, *, fixed: bool) -> None:
        """Fit ``means`` [K, D] in place; ``fixed`` where the server finds them from sums."""
        self.means, self.objective, self.settings = means, objective, config
        self.optimizer = torch.optim.Adam([means], lr=config.local.centroid_lr)
        self.fixed = fixed
        self._adopt()

    def _adopt(self) -> bool:
        """Copy the objective's own centroids, if it keeps any."""
        own = None if self.fixed else self.objective.centroids()
        if own is not None:
            self.means.data.copy_(own)
        return own is not None

    def step(self, codes: torch.Tensor, batch: Batch, generator: torch.Generator) -> float:
        """Move once, on detached codes [B, n, D]; return how far (Frobenius norm)."""
        if self.fixed:
            return 0.0
        before = self.means.detach().clone()
        if not self._adopt():
            self.optimizer.zero_grad(set_to_none=True)
            self._loss(codes, batch, generator).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return float(torch.linalg.vector_norm(self.means.detach() - before))

    def _loss(self, codes: torch.Tensor, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        if self.settings.centroids.local == "cosine":
            return cosine_cluster_loss(codes.flatten(0, 1), self.means)
        chosen = one_per_cell(batch.grid, self.settings.loss.own(ModularitySettings).cell, generator).to(
            codes.device
        )
        return modularity_loss(codes[:, chosen], self.means)
