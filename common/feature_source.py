"""What does training need to know of a site's features, wherever they come from?"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch


class FeatureSource(Protocol):
    """Frozen patch features of N images, cached or not.

    Everything that trains, counts or clusters reads features through this door only, so that none of
    it depends on a backbone, on a file, or on labels.
    """

    @property
    def channels(self) -> int:
        """C, the number of channels of a patch feature."""

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w), the patches of an image."""

    @property
    def device(self) -> torch.device:
        """Where `batch` puts its answer, and hence where training runs."""

    def __len__(self) -> int:
        """N, the number of images."""

    def batch(self, indices: list[int]) -> torch.Tensor:
        """Return the features of these images: float32 [B, C, h, w]."""

    def neighbours(self, k: int) -> np.ndarray:
        """Return each image's k most similar other images, nearest first: int64 [N, k]."""


def tokens_of(source: FeatureSource, indices: list[int]) -> torch.Tensor:
    """Return the features of these images token-major, one patch a row: [B, h*w, C]."""
    return source.batch(indices).flatten(2).transpose(1, 2)
