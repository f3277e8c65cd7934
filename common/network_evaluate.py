"""How good is a whole network on a labelled shard?

One confusion matrix over all pixels, rows predicted and columns true, summed over images: never a mean of
scores of images. The same counts are kept by domain, so that the spread over known domains can be told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from common.config_network import Transforms
from common.data.classes import ClassTable
from common.data.manifest import Shard
from common.data.pairs import entry_pair
from common.metrics import Confusion
from common.transforms import eval_image, image_tensor

Bytes = npt.NDArray[np.uint8]


@dataclass
class NetworkEvaluation:
    """Counts [C, C] of a shard, of each of its domains, and predictions of the images asked for, by index."""

    confusion: Confusion
    domains: dict[str, Confusion] = field(default_factory=dict)
    predictions: dict[int, Bytes] = field(default_factory=dict)
    num_images: int = 0


@torch.no_grad()
def predict_pixels(
    network: nn.Module, image: Bytes, transforms: Transforms, size: tuple[int, int] | None = None
) -> Bytes:
    """Return the class of every pixel, uint8 [H, W], of a picture uint8 [H, W, 3].

    The picture enters at the size of the settings; logits are brought to ``size`` (by default the picture's own)
    bilinearly before the largest one is taken. ``network`` stays in evaluation mode.
    """
    device = next(network.parameters()).device
    entered = eval_image(image_tensor(image), transforms).unsqueeze(0).to(device)
    entered = entered.float() / 255 if entered.dtype == torch.uint8 else entered
    logits = network.eval()(entered)
    wanted = size or (image.shape[0], image.shape[1])
    if tuple(logits.shape[-2:]) != wanted:
        logits = F.interpolate(logits, size=wanted, mode="bilinear", align_corners=False)
    labels: Bytes = logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
    return labels


def evaluate_network(
    network: Callable[[int], nn.Module],
    shard: Shard,
    table: ClassTable,
    transforms: Transforms,
    *,
    order: Collection[int] | None = None,
    keep: Collection[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> NetworkEvaluation:
    """Segment every image and count agreement with its label, at the label's own size.

    Args:
        network: gives the network for an image by index (all alike, or that of the image's cluster).
        shard: labelled images; label files are opened here.
        table: classes; C of the counts.
        transforms: how images enter.
        order: which images, in which order; by default all.
        keep: indices of images whose predictions are wanted.
        progress: called with (done, total) images.

    Raises:
        UserError: a label is missing, cannot be read, or does not fit its image.
    """
    found = NetworkEvaluation(Confusion(table.num_classes, table.num_classes))
    chosen = list(range(len(shard)) if order is None else order)
    for done, index in enumerate(chosen, start=1):
        image, label = entry_pair(shard, index, table)
        predicted = predict_pixels(network(index), image, transforms)
        found.confusion.update(predicted, label)
        domain = shard.entries[index].domain
        if domain is not None:
            counts = found.domains.setdefault(domain, Confusion(table.num_classes, table.num_classes))
            counts.update(predicted, label)
        if index in keep:
            found.predictions[index] = predicted
        found.num_images += 1
        if progress is not None:
            progress(done, len(chosen))
    return found


def identity_mapping(classes: int) -> npt.NDArray[np.int64]:
    """Return the mapping of predicted to true classes of a network that was trained with labels: itself."""
    return np.arange(classes, dtype=np.int64)


def sum_confusions(parts: Mapping[str, np.ndarray]) -> Confusion:
    """Sum counts [C, C] in the order of their names."""
    total = sum((parts[name].astype(np.int64) for name in sorted(parts)), start=np.int64(0))
    return Confusion.from_list(np.asarray(total).tolist())
