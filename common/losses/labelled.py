"""Labelled loss: cross-entropy of pixels that somebody, or a teacher, has labelled."""

from __future__ import annotations

import torch

from common.losses.reductions import reduce_cross_entropy
from common.losses.region_terms import lovasz_softmax_loss
from common.settings.network import Reduction


def labelled_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    reduction: Reduction,
    crucial: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the reduced cross-entropy plus ``lovasz_weight`` times the Lovász softmax loss, a scalar.

    logits [B, C, H, W], labels int64 [B, H, W] with 255 ignored, crucial bool [C]; see `reduce_cross_entropy`.
    """
    loss = reduce_cross_entropy(logits, labels, reduction, crucial)
    if reduction.lovasz_weight:
        loss = loss + reduction.lovasz_weight * lovasz_softmax_loss(logits, labels)
    return loss
