"""Self-training: which pixels of unlabelled images a network learns from, and its loss on them.

Self-training: a teacher predicts, the pixels it is surest of become labels, the student learns from those.
Sources: the rule of Li et al., CVPR 2019, per image and with a union, as in Shenaj et al., WACV 2023 (also
the distillation); the entropy term of Yang and Soatto, CVPR 2020.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch.nn import functional

from common.data.classes import IGNORE
from common.losses.reductions import full_precision, labelled_loss
from common.settings.network import Reduction

# Pixels that a CPU takes at once: few enough to stay in its cache, and enough for all its cores
BLOCK = 40_000
BUCKETS = 1 << 10
# A bucket of certainties is 2^15 neighbouring float32; 1024 of them reach from 1 down to 1/16, the last one takes the
# rest. Only speed depends on it.
BUCKET_BITS = 15
# How the publication reduces pseudo-labels: all pixels of a batch are one mean
MEAN = Reduction(kind="mean", scope="batch")
# The bits of 1.0 as float32. Among positive floats, larger ones have larger bits.
ONE = 0x3F800000


def kept_pixels(
    logits: torch.Tensor, confidence: float, fraction: float, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the teacher's labels, int64 [B, H, W], 255 where it is not sure: logits [B, C, H, W].

    ``valid``, bool [B, H, W], is False where no image lies: such pixels get no label, and count in no class. See
    `predictions` and `sure_pixels`.
    """
    certainty, classes = predictions(logits)
    channels = logits.shape[1]
    if valid is None or bool(valid.all()):
        kept = sure_pixels(certainty, classes, channels, confidence, fraction)
    else:  # what is no image is a class of its own, so that it takes nobody's place
        classes = torch.where(valid, classes, channels)
        kept = sure_pixels(certainty, classes, channels + 1, confidence, fraction) & valid
    return (classes | kept.byte() - 1).long()  # 0 - 1 is 255 in a byte, which is no label


@torch.no_grad()
def predictions(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest softmax probability of each pixel and its class, of equal ones the first.

    logits [B, C, H, W], C at most 255 -> float32 and uint8 [B, H, W]. Raises ValueError where those of a pixel make
    no probabilities (NaN, infinity, or -infinity for all classes). A class of -infinity is one that cannot be.
    """
    batch, channels, height, width = logits.shape
    if channels > IGNORE:
        raise ValueError(f"logits of {channels} classes; a label has room for {IGNORE}")
    if logits.device.type == "cpu":
        certainty, classes = _predictions_by_blocks(logits.flatten(2))
    else:
        certainty, classes = logits.flatten(2).float().softmax(dim=1).max(dim=1)
    # a teacher that has diverged would otherwise label nothing, and the loss would look perfect
    if not bool(certainty.amin() > 0):  # NaN is the smallest of all
        raise ValueError("the teacher's logits are not finite: its weights diverged or were damaged")
    certainty.clamp_(max=1)  # softmax times the reciprocal of a sum may be a last bit above
    shape = (batch, height, width)
    return certainty.view(shape), classes.byte().view(shape)


def _predictions_by_blocks(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest probabilities and their classes on a CPU, a block that fits in its cache at a time.

    [B, C, N] -> float32 and uint8 [B, N].
    """
    batch, channels, pixels = logits.shape
    step = max(1, BLOCK // batch)
    certainty = torch.empty(batch, pixels)
    classes = torch.empty(batch, pixels, dtype=torch.uint8)
    space = torch.empty(batch * channels * min(step, pixels))
    for start in range(0, pixels, step):
        part = slice(start, start + step)
        block = logits[:, :, part]
        # A block is a part of every image, so that each core stays with its own. It is copied first, so that the
        # pixels of a class lie side by side: ours is a network that computes channels last. Softmax then takes
        # its place, for a second block would leave the cache.
        terms = space[: block.numel()].view(block.shape)
        torch.softmax(terms.copy_(block), dim=1, out=terms)
        certainty[:, part], classes[:, part] = _first_largest(terms)
    return certainty, classes


def _first_largest(terms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest of the classes and which it is, of equals the first: [B, C, n] -> [B, n] twice."""
    batch, channels, count = terms.shape
    # on a CPU, max across rows takes one number at a time; max pooling of maps channels last takes several, so
    # the pixels stand in for its channels, and the classes for a column of the map
    columns = terms.as_strided((batch, count, channels, 1), (channels * count, 1, count, count))
    largest, classes = functional.max_pool2d(columns, (channels, 1), return_indices=True)
    return largest[:, :, 0, 0], classes[:, :, 0, 0]


@torch.no_grad()
def sure_pixels(
    certainty: torch.Tensor, classes: torch.Tensor, channels: int, confidence: float, fraction: float
) -> torch.Tensor:
    """Return which pixels are believed, bool [B, H, W].

    certainty: float32 [B, H, W] in (0, 1]; classes: integers [B, H, W] in 0..channels-1. A pixel is kept if
    its certainty is above ``confidence``, or if it is among the floor(fraction * n) surest of the n pixels of
    its class in its image; of equals, the one that comes first row by row. The count is exact.
    """
    # a histogram of certainties per image and class finds the bucket in which the cut lies; only the pixels of
    # that bucket are sorted, and there is no loop over images or classes
    cell = ONE - certainty.contiguous().view(torch.int32)  # 0 for the surest
    cell.bitwise_right_shift_(BUCKET_BITS).clamp_(max=BUCKETS - 1).add_(classes, alpha=BUCKETS)
    groups = len(classes) * channels
    images = torch.arange(0, groups, channels, device=cell.device, dtype=torch.int32)
    cell = cell.add_(images[:, None, None], alpha=BUCKETS).flatten()

    histogram = torch.bincount(cell, minlength=groups * BUCKETS).view(groups, BUCKETS)
    surest = histogram.cumsum(dim=1)
    quota = (surest[:, -1].double() * fraction).floor().long()
    cut = (surest < quota[:, None]).sum(dim=1, keepdim=True)  # the first bucket that reaches the quota
    cut.clamp_(min=_bucket(confidence))  # before the bucket of ``confidence``, all are kept without a quota
    buckets = torch.arange(BUCKETS, device=cut.device)
    verdict = 2 * (buckets < cut).byte() + (buckets == cut).byte()  # of each cell: 2 all, 1 some, 0 none
    of_pixel = verdict.flatten().index_select(0, cell)
    kept = of_pixel == 2

    contested = (of_pixel == 1).nonzero()[:, 0]
    flat = certainty.flatten()
    sure = flat[contested] > confidence  # the surest of their bucket, so they fill the quota first
    kept[contested[sure]] = True
    contested = contested[~sure]
    group, depth = cell[contested].long() // BUCKETS, ONE - flat[contested].view(torch.int32)
    order = ((group << 32) + depth).sort(stable=True).indices
    group = group[order]
    count = torch.bincount(group, minlength=groups)
    rank = torch.arange(len(order), device=order.device) - (count.cumsum(dim=0) - count)[group]
    places = quota - (surest.gather(1, cut)[:, 0] - count)
    kept[contested[order[rank < places[group]]]] = True
    return kept.view_as(certainty)


def _bucket(confidence: float) -> int:
    """Return the bucket of a certainty, below 0 for one that no pixel can exceed."""
    if confidence >= 1:
        return -1
    bits = int(torch.tensor(max(confidence, 0.0)).view(torch.int32))
    return min((ONE - bits) >> BUCKET_BITS, BUCKETS - 1)


def pseudo_label_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    denominator: Literal["all", "kept"],
    reduction: Reduction = MEAN,
    crucial: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the student's loss on the kept pixels of a batch, a scalar: their mean cross-entropy by default.

    logits [B, C, H, W], labels as from `kept_pixels`. ``denominator`` all divides by every pixel, as
    published: the less the teacher is sure of, the weaker the pull; kept divides by the kept ones. It stands in
    for that of ``reduction``, whose counts of classes are of kept pixels alone (`labelled_loss`).
    """
    over = "valid" if denominator == "kept" else "all"
    return labelled_loss(logits, labels, reduction.model_copy(update={"denominator": over}), crucial)


def distillation_loss(
    logits: torch.Tensor, teacher: torch.Tensor, alpha: float, mask: torch.Tensor
) -> torch.Tensor:
    """Return how far the student has gone from a frozen teacher on the pixels of a mask, a scalar.

    ``- 1 / (B H W) sum_u mask_u 1/C sum_c softmax(alpha teacher)_c log softmax(logits)_c``, so the mean is
    over all pixels and over classes; alpha below 1 softens the teacher only. logits, teacher [B, C, H, W];
    mask bool [B, H, W]; no gradient reaches the teacher.
    """
    target = (alpha * full_precision(teacher.detach())).softmax(dim=1)
    losses = functional.cross_entropy(full_precision(logits), target, reduction="none")
    return (losses * mask).mean() / logits.shape[1]


def entropy_loss(logits: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Return how undecided the predictions are: logits [B, C, H, W] -> a scalar, 0 (certain) to about 1.

    ``mean((H^2 + 1e-8)^2)``, H the entropy of a pixel's softmax over log C. The mean is over the pixels that are
    ``valid``, bool [B, H, W], if given; 0 where none is.
    """
    logs = full_precision(logits).log_softmax(dim=1)
    entropy = -(logs.exp() * logs).sum(dim=1) / math.log(logits.shape[1])
    # steep where the entropy is large, so that the undecided pixels give the gradient, not the crowd of decided
    # ones
    pixels = (entropy.square() + 1e-8).square()
    if valid is None:
        return pixels.mean()
    return (pixels * valid).sum() / valid.sum().clamp(min=1)
