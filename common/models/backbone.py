"""Frozen backbones: images in, patch features out. Each architecture is a file in ``common/models/backbones``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import nn

from common.models.inputs import backbone_entry
from common.models.weights import state_hash
from common.seeds import derive
from common.settings.unsupervised import Model
from common.system.device import choose_device

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's training images per channel, in 0..1."""
PER_IMAGE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Mean and std where every image is brought to mean 0 and std 1 by itself."""
MIN_SPREAD = 0.02
"""An image of one color is not blown up to noise."""


class Backbone(nn.Module):
    """A frozen feature extractor that owns its normalisation.

    Frozen for good: no parameter asks for a gradient, and `train` leaves it in eval mode (so batch
    norms keep their statistics and nothing is dropped).

    Attributes:
        channels: C, channels of a patch feature.
        grid: (h, w), patches of a picture of the configured size.
        size: (H, W), the configured input size in pixels.
        weights_hash: sha256 (hex) of everything the model holds, normalisation included.
    """

    extractor: Any
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        extractor: nn.Module,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        per_image: bool = False,
    ) -> None:
        """Freeze ``extractor``: normalised [B, 3, H, W] -> [B, C, h, w].

        ``per_image`` gives every picture mean 0 and standard deviation 1 in each channel first: its light
        and tint are gone before mean and std apply.
        """
        super().__init__()
        self.per_image = per_image
        self.extractor = extractor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.size = size
        self.requires_grad_(False)
        self.train(False)
        with torch.no_grad():  # one picture tells the truth about channels and grid
            _, self.channels, *grid = self.extractor(torch.zeros(1, 3, *size)).shape
        self.grid: tuple[int, int] = (grid[0], grid[1])
        self.weights_hash = state_hash(self)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map pictures, float [B, 3, H, W] in 0..1, to token-major features [B, h*w, C].

        Raises `ValueError` where the pictures do not have the configured size.
        """
        if tuple(images.shape[1:]) != (3, *self.size):
            raise ValueError(
                f"expected pictures [B, 3, {self.size[0]}, {self.size[1]}], got {list(images.shape)}"
            )
        if self.per_image:
            spread = images.std(dim=(2, 3), keepdim=True).clamp(min=MIN_SPREAD)
            images = (images - images.mean(dim=(2, 3), keepdim=True)) / spread
        features: torch.Tensor = self.extractor((images - self.mean) / self.std)
        return features.flatten(2).transpose(1, 2)


def load_backbone(model: Model, seed: int, device: str | torch.device | None = None) -> Backbone:
    """Build the frozen backbone that ``model`` describes and put it on a device.

    Args:
        model: name, weights, input size and what counts as a feature.
        seed: of random weights (``weights = "random"``); the global generators are left alone.
        device: see `common.system.device.choose_device`.

    Raises:
        UserError: unknown name, size that does not fit the patch, weights that are missing or do not
            fit, or pretrained weights without a connection.
    """
    place = choose_device(device)
    backbone: Backbone = backbone_entry(model).value(model, seed)
    return backbone.to(place)


@contextmanager
def seeded_constructors(seed: int) -> Iterator[None]:
    """Let constructors that draw from torch's global generator draw from ``seed``, then put it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "backbone"))
        yield
