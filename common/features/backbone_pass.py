"""Forward passes of the backbone over images: arithmetic, batch size, and less of it where memory is short."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from common.data.manifest import Shard
from common.data.reading import entry_image
from common.errors import UserError
from common.models.backbone import Backbone
from common.models.inputs import prepare_image
from common.settings.unsupervised import Cache, Model

_log = logging.getLogger(__name__)

GPU_BATCH = 16
"""Images that the backbone sees at once on a GPU."""
CPU_BATCH = 2
"""On the CPU more is no faster, but takes memory: activations of a whole picture per image."""


def in_float16(cache: Cache, device: torch.device) -> bool:
    """Tell whether features are computed in float16: on CUDA, where it is asked for; a CPU would be slower."""
    return cache.mixed_precision and device.type == "cuda"


class BackbonePass:
    """Runs a backbone over pictures; ``batch`` is how many it sees at once, and falls where a GPU has no room.

    Several sites may share a GPU, and how much of it is free changes while they work.
    """

    def __init__(self, backbone: Backbone, device: torch.device, float16: bool = False) -> None:
        """Take a backbone that is on ``device``; ``float16`` lets matrix products and convolutions use it."""
        self.backbone = backbone
        self.device = device
        self.float16 = float16
        self.batch = CPU_BATCH if device.type == "cpu" else GPU_BATCH

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the features of pictures [B, 3, H, W]: float32 [B, h*w, C], on the device.

        Raises `UserError` where the GPU has no room for one picture.
        """
        while True:
            try:
                return self._features(pictures)
            except torch.cuda.OutOfMemoryError as error:
                reason = str(error).splitlines()[0]
            # out of the handler: until here the exception keeps the activations of the failed batch alive
            if self.batch == 1:
                raise UserError(
                    f"GPU '{self.device}' has no room for the features of a single picture ({reason}); raise this "
                    "site's gpu-share, end what else runs on the GPU, or set device to cpu."
                )
            torch.cuda.empty_cache()
            self.batch //= 2
            _log.warning(
                "GPU '%s' is out of memory; going on with %d images at once", self.device, self.batch
            )

    def _features(self, pictures: torch.Tensor) -> torch.Tensor:
        found = []
        for piece in pictures.split(self.batch):  # type: ignore[no-untyped-call]
            with torch.autocast(self.device.type, torch.float16, enabled=self.float16):
                tokens = self.backbone(piece.to(self.device))
            found.append(tokens.float().contiguous())
        return found[0] if len(found) == 1 else torch.cat(found)


def encode_images(
    run: BackbonePass,
    shard: Shard,
    model: Model,
    indices: Sequence[int],
    change: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
) -> Iterator[tuple[Sequence[int], torch.Tensor, torch.Tensor]]:
    """Yield (indices, tokens float32 [b, h*w, C], colors [b, h*w, 3]) of as many images as ``run`` takes at once.

    ``change`` makes another image of image [3, H, W] and index, before the backbone sees it.
    """

    def load(index: int) -> torch.Tensor:
        picture = prepare_image(entry_image(shard, index), model)
        return picture if change is None else change(picture, index)

    # decoding releases the interpreter lock, so that threads help wherever there are cores
    with ThreadPoolExecutor(max_workers=min(run.batch, os.cpu_count() or 1)) as pool:
        left = indices
        while len(left):
            part, left = left[: run.batch], left[run.batch :]
            pictures = torch.stack(list(pool.map(load, part)))
            yield part, run(pictures), cell_colours(pictures, run.backbone.grid)


def cell_colours(pictures: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Return the mean colour in each cell of the grid: pictures [B, 3, H, W] -> [B, h*w, 3]."""
    return torch.nn.functional.adaptive_avg_pool2d(pictures, grid).flatten(2).transpose(1, 2)
