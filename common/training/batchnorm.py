"""Batch norm statistics measured at a site, blended with those of the network.

Images of dusk shift the means and variances that a network met in training, and no label is needed to shift
them along. A mean of both statistics beats either: the source's are exact but of other pictures, the site's
are few (Schneider et al., NeurIPS 2020, who call it the adaptation of batch norm statistics with a prior).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.data.images import entry_image
from common.data.manifest import Shard
from common.data.transforms import eval_image, image_tensor
from common.errors import UserError
from common.settings.network import Transforms

BATCH = 8  # whole images at a time: their activations in all layers fill the memory


def whole_images(
    shard: Shard, transforms: Transforms, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """Yield all images as they are scored, float32 [B, 3, H, W] in 0..1, in batches of nearly equal size.

    Neighbours in a manifest are often neighbours in time, so that a batch takes every n-th image: its variance is
    that of the site. Raises `UserError` for images of several sizes.
    """
    batches = -(-len(shard) // BATCH)
    for first in range(batches):
        images = [
            eval_image(image_tensor(entry_image(shard, index)), transforms)
            for index in range(first, len(shard), batches)
        ]
        if len({image.shape for image in images}) > 1:
            raise UserError(
                f"{shard.name} has images of several sizes, but network.site-statistics and final-statistics look at "
                "batches of whole images; set transforms.eval-height and transforms.eval-width."
            )
        batch = torch.stack(images).to(device)
        yield batch.float() / 255 if batch.dtype == torch.uint8 else batch


@torch.no_grad()
def blend_statistics(network: nn.Module, batches: Iterable[Tensor], share: float) -> None:
    """Move all running means and variances the way ``share`` (0 to 1) from what they are to those of the batches.

    Those of the batches are means over batches of the same weight, each layer's of what the layers before it
    make of the batch with its own statistics. A layer that saw none (global pooling of one image) stays as it
    is. No parameter changes. The network is in evaluation mode afterwards.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [tuple(one.clone() for one in _running(norm)) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        assert norm.num_batches_tracked is not None, "it tracks them"
        norm.num_batches_tracked.zero_()
        norm.momentum = None  # a plain mean over all batches: the first one replaces what was there
        norm.train()
    for batch in batches:
        network(batch)
    for norm, received, momentum in zip(norms, before, momenta, strict=True):
        weight = share if norm.num_batches_tracked else 0.0
        for old, new in zip(received, _running(norm), strict=True):
            new.copy_(torch.lerp(old, new, weight))
        norm.momentum = momentum
    network.eval()


def _running(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None, "it tracks them"
    return norm.running_mean, norm.running_var
