"""How does the backbone see pictures: in which arithmetic, and how many at once where memory is short?"""

from __future__ import annotations

import logging

import torch

from common.errors import UserError
from common.models.backbone import Backbone
from common.settings.unsupervised import Cache

log = logging.getLogger(__name__)

BATCH = 16
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
        self.batch = CPU_BATCH if device.type == "cpu" else BATCH

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
            log.warning("GPU '%s' is out of memory; going on with %d images at once", self.device, self.batch)

    def _features(self, pictures: torch.Tensor) -> torch.Tensor:
        found = []
        for piece in pictures.split(self.batch):  # type: ignore[no-untyped-call]
            with torch.autocast(self.device.type, torch.float16, enabled=self.float16):
                tokens = self.backbone(piece.to(self.device))
            found.append(tokens.float().contiguous())
        return found[0] if len(found) == 1 else torch.cat(found)
