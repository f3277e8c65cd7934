"""What is an objective to the local trainer, and which one does a run use?

The trainer knows batches, optimisers and rounds; an objective knows the loss. It is a module: what it owns
beyond the head (prototypes, codebooks, a basis) are its own named parameters and buffers, which travel and
are merged beside the head. The arithmetic lives in pure functions, one file an objective.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from common import config
from common.losses import correspondence
from common.models.head import SegmentationHead, channel_mask


@dataclass(frozen=True)
class Batch:
    """The frozen features of one step.

    features: [B, h*w, C], token-major; positives: a neighbour of each image, alike, or ``None`` where the
    shard has no second image; grid: (h, w).
    """

    features: torch.Tensor
    positives: torch.Tensor | None
    grid: tuple[int, int]


@dataclass(frozen=True)
class Outcome:
    """What an objective makes of a batch: the loss, the codes [B, h*w, D] of its images, and figures to
    log.
    """

    loss: torch.Tensor
    codes: torch.Tensor
    terms: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """Base of the objectives: turns a batch and the head into a loss.

    The state of the module is the objective's shared state: averaged over the sites, or, for the names in
    ``broadcast``, the same for all and only ever written by the server. An objective without any has an
    empty one.
    """

    wants_positives: ClassVar[bool] = False
    broadcast: ClassVar[frozenset[str]] = frozenset()

    def forward(self, batch: Batch, head: SegmentationHead, generator: torch.Generator) -> Outcome:
        """Return the loss of a batch; all random choices come from ``generator`` (on the CPU)."""
        raise NotImplementedError

    def groups(self, local: config.Local) -> list[dict[str, object]]:
        """Return Adam's parameter groups for the objective's own parameters."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": parameters, "lr": local.lr}] if parameters else []

    def after_step(self) -> None:
        """Update what follows the parameters without a gradient, for example a momentum copy."""


class Correspondence(Objective):
    """The correspondence loss (`common.losses.correspondence`) on codes of images and of their neighbours."""

    wants_positives = True

    def __init__(self, settings: config.Loss) -> None:
        super().__init__()
        self.settings = settings
        self.wants_positives = settings.inter_weight > 0  # type: ignore[misc]

    def forward(self, batch: Batch, head: SegmentationHead, generator: torch.Generator) -> Outcome:
        """Draw masks and positions, project, compare."""
        device = batch.features.device
        anchor = self._maps(batch.features, head, generator)
        positive = None if batch.positives is None else self._maps(batch.positives, head, generator)
        draw = correspondence.draw(len(batch.features), self.settings, generator).to(device)
        terms = correspondence.correspondence_loss(anchor, positive, batch.grid, draw, self.settings)
        return Outcome(
            terms.total,
            anchor.codes,
            {"intra": terms.intra, "inter": terms.inter, "negative": terms.negative},
        )

    @staticmethod
    def _maps(
        tokens: torch.Tensor, head: SegmentationHead, generator: torch.Generator
    ) -> correspondence.Maps:
        codes = head.project(tokens, *head.draw_masks(len(tokens), generator))
        teacher = channel_mask(len(tokens), head.channels, head.dropout if head.training else 0.0, generator)
        return correspondence.Maps(tokens, codes, None if teacher is None else teacher.to(tokens.device))


def build_objective(settings: config.RunConfig, channels: int) -> Objective:
    """Build the objective that the settings name; its starting state follows from the seed alone."""
    if settings.loss.objective == "correspondence":
        return Correspondence(settings.loss)
    raise NotImplementedError(f"objective {settings.loss.objective}")
