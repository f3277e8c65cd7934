"""Region terms: other losses of a prediction, by overlap of regions and by squared probabilities.

Both are off by default: ``reduction.lovasz-weight`` and ``teacher.max-square-weight`` switch them on.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from common.data.classes import IGNORE
from common.losses.reductions import full_precision, pixel_counts


def lovasz_softmax_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the Lovász extension of the Jaccard loss, mean over the classes of a batch, a scalar.

    logits [B, C, H, W], labels int64 [B, H, W], 255 ignored; 0 with a graph where nothing is labelled. Where
    the softmax is one-hot it is exactly the mean of 1 - IoU over the classes present in the labels.

    Source: Berman, Rannen Triki and Blaschko, CVPR 2018. Errors of a class, sorted downwards, are weighted by
    how much each one more mistake costs in IoU.
    """
    classes = logits.shape[1]
    valid = labels != IGNORE
    probabilities = full_precision(logits).softmax(dim=1).movedim(1, -1)[valid].T  # [C, valid pixels]
    truth = functional.one_hot(labels[valid], classes).T
    present = truth.any(dim=1)
    if not bool(present.any()):
        return logits.sum() * 0
    truth = truth[present].to(probabilities.dtype)
    errors, order = (truth - probabilities[present]).abs().sort(dim=1, descending=True)
    truth = truth.gather(1, order)
    missed, mistaken = truth.cumsum(dim=1), (1 - truth).cumsum(dim=1)
    total = truth.sum(dim=1, keepdim=True)
    jaccard = 1 - (total - missed) / (total + mistaken)
    steps = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], dim=1)
    return (errors * steps).sum(dim=1).mean()


def max_square_loss(
    logits: torch.Tensor, ratio: float = 0.2, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Return minus half the sum of squared probabilities, weighted by image and class, a scalar.

    logits [B, C, H, W]; ``valid``, bool [B, H, W], says which N pixels of an image count (all, if not given; 0
    where none does). ``- mean over images of sum_u sum_c p_uc^2 / (2 n_k^ratio N^(1 - ratio))`` where k is the
    class that pixel u is predicted as and n_k its pixels. ``ratio`` 0 is the plain loss, between -1/2 (certain)
    and -1/(2C); 1 gives each predicted class the same say.

    Source: Chen, Xue and Cai, ICCV 2019. Unlike entropy its gradient grows only linearly with certainty.
    """
    probabilities = full_precision(logits).softmax(dim=1).flatten(2)
    classes = logits.shape[1]
    predicted = probabilities.argmax(dim=1)
    if valid is not None:
        predicted = torch.where(valid.flatten(1), predicted, classes)  # a last class, of weight 0
    counts = pixel_counts(predicted, classes + 1)[:, :classes]
    pixels = counts.sum(dim=1, keepdim=True).clamp(min=1)
    weights = (counts.clamp(min=1).to(probabilities.dtype) / pixels).pow(-ratio) / pixels
    weights = functional.pad(weights, (0, 1)).gather(1, predicted)
    return -(probabilities.square().sum(dim=1) * weights).sum(dim=1).mean() / 2
