"""What is an objective to the local trainer?

The trainer knows batches, optimisers and rounds; an objective knows the loss. It is a module: what it owns
beyond the head (prototypes, a codebook, a decoder) are its own named parameters and buffers, which travel
and are averaged beside the head. The arithmetic lives in pure functions, one file an objective.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from common.models.head import SegmentationHead, channel_mask
from common.settings.unsupervised import Local

EPSILON = 1e-10
"""Norms below this count as this, as in the published code."""


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Scale the last axis to length 1."""
    return functional.normalize(vectors, dim=-1, eps=EPSILON)


@dataclass(frozen=True)
class View:
    """Images as a loss sees them: features [B, n, C], codes [B, n, D], and the channels features keep
    [B, 1, C].

    All are token-major, n = h*w patches row by row. The published code shows the loss channel-dropped
    features: the third mask of a head call, independent of the two inside the head. It is kept apart,
    because a mask commutes with sampling: after sampling it costs a fraction.
    """

    features: torch.Tensor
    codes: torch.Tensor
    mask: torch.Tensor | None = None

    @classmethod
    def of(cls, tokens: torch.Tensor, head: SegmentationHead, generator: torch.Generator | None) -> View:
        """Project tokens [B, n, C] with the head's own dropout and draw the third mask."""
        codes = head.project(tokens, *head.draw_masks(len(tokens), generator))
        dropout = head.dropout if head.training else 0.0
        mask = channel_mask(len(tokens), head.channels, dropout, generator)
        return cls(tokens, codes, None if mask is None else mask.to(tokens.device))

    @property
    def dropped(self) -> torch.Tensor:
        """The features with their channels dropped: [B, n, C]."""
        return self.features if self.mask is None else self.features * self.mask


@dataclass(frozen=True)
class Batch:
    """What one step is about.

    anchor: the images; positive: a neighbour of each, or ``None`` where none was asked for or the shard
    has no second image; grid: (h, w); colours: [B, n, 3] in 0..1, the mean colour of each patch, for
    objectives that ask.
    """

    anchor: View
    positive: View | None
    grid: tuple[int, int]
    colours: torch.Tensor | None = None
    augmented: tuple[View, torch.Tensor] | None = None


class Objective(nn.Module):
    """Base of the objectives: turns a batch and the head into a loss.

    The state of the module is the objective's shared state, averaged over the sites beside the head;
    what is private to a site or lasts one round only is a plain attribute, made in `start_round`.
    """

    wants_positives: bool = False
    wants_colours: bool = False
    wants_augmented: bool = False

    def start_round(self, round_number: int, head: SegmentationHead, centroids: torch.Tensor) -> None:
        """Prepare for a round that starts with this head and these centroids [K, D]."""

    def forward(self, batch: Batch, head: SegmentationHead, generator: torch.Generator) -> torch.Tensor:
        """Return the loss of a batch; all random choices come from ``generator`` (on the CPU)."""
        raise NotImplementedError

    def after_step(self, head: SegmentationHead) -> None:
        """Update what follows the parameters without a gradient, for example a momentum copy."""

    def groups(self, local: Local) -> list[dict[str, object]]:
        """Return Adam's parameter groups for the objective's own parameters."""
        own = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": own, "lr": local.lr}] if own else []

    def centroids(self) -> torch.Tensor | None:
        """Return the centroids [K, D] that this objective keeps itself, or ``None``: then the trainer
        fits them.
        """
        return None
