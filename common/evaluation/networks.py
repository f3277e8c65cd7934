"""Evaluation of a whole network on a labelled shard.

One confusion matrix over all pixels, rows predicted and columns true, summed over images: never a mean of
scores of images. The same counts are kept by domain and by site, so that the spread over them can be told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.data.classes import ClassTable
from common.data.images import Bytes, entry_pair
from common.data.manifest import Shard
from common.data.transforms import eval_image, image_tensor
from common.evaluation.metrics import Confusion
from common.settings.network import Transforms


@dataclass
class NetworkEvaluation:
    """Counts [C, C] of a shard, of its known domains and sites, and predictions of images asked for, by index."""

    confusion: Confusion
    domains: dict[str, Confusion] = field(default_factory=dict)
    sites: dict[str, Confusion] = field(default_factory=dict)
    predictions: dict[int, Bytes] = field(default_factory=dict)
    num_images: int = 0


@torch.no_grad()
def predict_logits(
    network: nn.Module,
    image: Bytes,
    transforms: Transforms,
    size: tuple[int, int] | None = None,
    *,
    flip: bool = False,
) -> Tensor:
    """Return logits float32 [C, H, W] of an image uint8 [H, W, 3], on the network's device.

    The image enters at the size of the settings; logits are brought to ``size`` (by default the image's own)
    bilinearly. With ``flip`` they are the logarithms of probabilities, averaged with those of the mirrored
    image. ``network`` stays in evaluation mode.
    """
    device = next(network.parameters()).device
    entered = eval_image(image_tensor(image), transforms).unsqueeze(0).to(device)
    entered = entered.float() / 255 if entered.dtype == torch.uint8 else entered
    logits: Tensor = network.eval()(entered)
    if flip:
        mirrored = network(entered.flip(-1)).flip(-1)
        both = torch.stack([torch.log_softmax(part, dim=1) for part in (logits, mirrored)])
        logits = both.logsumexp(dim=0) - math.log(2)
    wanted = size or (image.shape[0], image.shape[1])
    if tuple(logits.shape[-2:]) != wanted:
        logits = F.interpolate(logits, size=wanted, mode="bilinear", align_corners=False)
    return logits[0]


def predict_pixels(
    network: nn.Module,
    image: Bytes,
    transforms: Transforms,
    *,
    flip: bool = False,
) -> Bytes:
    """Return the class of every pixel, uint8 [H, W]: that of the largest logit (see `predict_logits`)."""
    logits = predict_logits(network, image, transforms, flip=flip)
    labels: Bytes = logits.argmax(dim=0).to(torch.uint8).cpu().numpy()
    return labels


def evaluate_network(
    network: Callable[[int], nn.Module],
    shard: Shard,
    table: ClassTable,
    transforms: Transforms,
    *,
    order: Collection[int] | None = None,
    keep: Collection[int] = (),
    flip: bool = False,
) -> NetworkEvaluation:
    """Segment every image by a network and count agreement with its label, as `count_agreement` does.

    ``network`` gives the network for an image by index (all alike, or that of the image's cluster), ``transforms`` says
    how images enter, and ``flip`` averages with the mirrored image.
    """

    def predict(index: int, image: Bytes) -> Bytes:
        return predict_pixels(network(index), image, transforms, flip=flip)

    return count_agreement(predict, shard, table, order=order, keep=keep)


def count_agreement(
    predict: Callable[[int, Bytes], Bytes],
    shard: Shard,
    table: ClassTable,
    *,
    order: Collection[int] | None = None,
    keep: Collection[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> NetworkEvaluation:
    """Segment every image and count agreement with its label, at the label's own size.

    Args:
        predict: turns index and image uint8 [H, W, 3] into classes uint8 [H, W].
        shard: labelled images; label files are opened here.
        table: classes; C of the counts.
        order: which images, in which order; by default all.
        keep: indices of images whose predictions are wanted.
        progress: called with (done, total) images.

    Raises:
        UserError: a label is missing, cannot be read, or does not fit its image.
    """

    def blank() -> Confusion:
        return Confusion(table.num_classes, table.num_classes)

    found = NetworkEvaluation(blank())
    chosen = list(range(len(shard)) if order is None else order)
    for done, (index, image, label) in enumerate(_read_ahead(shard, chosen, table), start=1):
        predicted = predict(index, image)
        counts = blank()  # once an image, whatever it is counted for
        counts.update(predicted, label)
        found.confusion.add(counts)
        entry = shard.entries[index]
        for parts, name in ((found.domains, entry.domain), (found.sites, entry.site)):
            if name is not None:
                parts.setdefault(name, blank()).add(counts)
        if index in keep:
            found.predictions[index] = predicted
        found.num_images += 1
        if progress is not None:
            progress(done, len(chosen))
    return found


def _read_ahead(shard: Shard, chosen: list[int], table: ClassTable) -> Iterator[tuple[int, Bytes, Bytes]]:
    """Yield index, image and label of images in order; the next one is decoded while one is being used."""
    with ThreadPoolExecutor(1, thread_name_prefix="scored") as pool:
        waiting = [pool.submit(entry_pair, shard, index, table) for index in chosen[:1]]
        for place, index in enumerate(chosen):
            pair = waiting.pop().result()
            waiting += [
                pool.submit(entry_pair, shard, next_, table) for next_ in chosen[place + 1 : place + 2]
            ]
            yield index, *pair
