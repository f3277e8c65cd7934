"""Losses of labelled pixels: reductions of their cross-entropies, in which some weigh more, and terms of regions.

For one image: N pixels, n_c of them of class c, P the classes with n_c > 0, l_u the cross-entropy of pixel u.

| kind              | loss of the image               |                                                |
|-------------------|---------------------------------|------------------------------------------------|
| mean              | sum_u l_u / N                   |                                                |
| weighted          | sum_u w l_u / N                 | w = ``weight`` for crucial classes, 1 for others |
| per-class         | sum_c (mean of l over c) / |P|  |                                                |
| inverse-frequency | sum_u (N / n_c)^p l_u / N       | the factor at most ``cap``                     |
| hard-pixels       | mean of the largest l_u         | ``hard_share`` of them                         |

The first four are one weight for each image and class, so that they cost one gather. Sources: the course
project of Candellieri, Sibille and Soro (the first four); Shenaj et al., WACV 2023 (hard pixels, 25 %).
"""

from __future__ import annotations

import difflib

import torch
from torch.nn import functional

from common.data.classes import IGNORE, ClassTable
from common.errors import UserError
from common.settings.network import Reduction


def labelled_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    reduction: Reduction,
    crucial: torch.Tensor | None = None,
    balance: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the reduced cross-entropy plus ``lovasz_weight`` times the Lovász softmax loss, a scalar.

    logits [B, C, H, W], labels int64 [B, H, W] with 255 ignored, crucial bool [C], balance [C]: see
    `reduce_cross_entropy`.
    """
    loss = reduce_cross_entropy(logits, labels, reduction, crucial, balance)
    if reduction.lovasz_weight:
        loss = loss + reduction.lovasz_weight * lovasz_softmax_loss(logits, labels)
    return loss


def reduce_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    reduction: Reduction,
    crucial: torch.Tensor | None = None,
    balance: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss, a scalar: logits [B, C, H, W], labels int64 [B, H, W] in 0..C-1 or 255 (ignored).

    ``scope`` image takes N, n_c and P from one image and averages over the B images, so that an image's
    gradient does not depend on its neighbours; batch takes all pixels as one image. Ignored pixels lose
    nothing and never count in n_c; with ``denominator`` valid they do not count in N either. An image
    without a labelled pixel adds 0, with a graph. Arithmetic is float32, whatever autocast gave.

    ``crucial`` bool [C] goes with kind weighted (`crucial_classes`); without it that kind is a ValueError. ``balance``
    [C] multiplies the losses of each class's pixels before they are reduced.
    """
    classes = logits.shape[1]
    logits = full_precision(logits)
    groups = len(labels) if reduction.scope == "image" else 1
    losses = functional.cross_entropy(logits, labels, balance, ignore_index=IGNORE, reduction="none")
    losses = losses.view(groups, -1)
    ids = labels.reshape(groups, -1)
    ids = torch.where(ids == IGNORE, classes, ids)  # the ignored become a last class, of weight 0
    counts = pixel_counts(ids, classes + 1)[:, :classes]
    pixels = (
        counts.sum(dim=1) if reduction.denominator == "valid" else torch.full_like(counts[:, 0], ids.shape[1])
    )
    if reduction.kind == "hard-pixels":
        return hardest(losses, pixels, reduction.hard_share).mean()
    weights = pixel_weights(counts.to(losses.dtype), pixels.to(losses.dtype), reduction, crucial)
    return (functional.pad(weights, (0, 1)).gather(1, ids) * losses).sum(dim=1).mean()


def full_precision(logits: torch.Tensor) -> torch.Tensor:
    """Return logits that came in half precision as float32; float32 and float64 stay."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def pixel_counts(ids: torch.Tensor, classes: int) -> torch.Tensor:
    """Count ids int64 [G, n] in 0..classes-1 in each row: int64 [G, classes]."""
    rows = torch.arange(len(ids), device=ids.device)[:, None] * classes
    counts = torch.bincount((ids + rows).flatten(), minlength=len(ids) * classes)
    return counts.view(len(ids), classes)


def pixel_weights(
    counts: torch.Tensor, pixels: torch.Tensor, reduction: Reduction, crucial: torch.Tensor | None
) -> torch.Tensor:
    """Return what a pixel's loss is multiplied by: [G, C] from n_c [G, C] and N [G]; finite everywhere."""
    present = counts.clamp(min=1)  # the weight of an absent class is never read
    total = pixels.clamp(min=1)[:, None]
    if reduction.kind == "per-class":
        seen = (counts > 0).sum(dim=1, keepdim=True).clamp(min=1)
        return 1 / (seen * present)
    factors = torch.ones_like(counts)
    if reduction.kind == "weighted":
        if crucial is None or crucial.shape != counts.shape[1:]:
            raise ValueError(
                f"a weighted loss over {counts.shape[1]} classes needs one bool a class that says which are "
                f"crucial; got {None if crucial is None else tuple(crucial.shape)}"
            )
        factors = torch.where(crucial.to(counts.device), reduction.weight, factors)
    elif reduction.kind == "inverse-frequency":
        factors = (total / present) ** reduction.power
        if reduction.cap > 0:
            factors = factors.clamp(max=reduction.cap)
    return factors / total


def hardest(losses: torch.Tensor, pixels: torch.Tensor, share: float) -> torch.Tensor:
    """Return the mean of the floor(share * pixels), at least one, largest losses of each row.

    losses [G, n] with 0 for ignored pixels, pixels int64 [G] -> [G].
    """
    # in float64: a float32 product may round across an integer
    kept = (pixels.double() * share).floor().long().clamp(min=1)
    largest = losses.topk(int(kept.max()), dim=1).values
    ranks = torch.arange(largest.shape[1], device=losses.device)
    return torch.where(ranks < kept[:, None], largest, 0).sum(dim=1) / kept


def crucial_classes(reduction: Reduction, table: ClassTable) -> torch.Tensor:
    """Return which classes of the table weigh more: bool [C].

    They are the names in ``reduction.crucial``, or the table's rare ones where that is empty. Raises
    `UserError` for a name that the table does not have, and where kind weighted finds no class at all.
    """
    named = [name.strip() for name in reduction.crucial.split(",") if name.strip()]
    for name in named:
        if name not in table.names:
            near = difflib.get_close_matches(name, table.names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(
                f"reduction.crucial names the class {name!r}, which the class table {table.name!r} does not "
                f"have: {hint}expected some of {', '.join(table.names)}."
            )
    chosen = set(named or table.rare)
    if reduction.kind == "weighted" and not chosen:
        raise UserError(
            f"reduction.kind is weighted, but the class table {table.name!r} says of no class that it is rare; "
            "name the classes in reduction.crucial, separated by commas."
        )
    return torch.tensor([name in chosen for name in table.names])


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
