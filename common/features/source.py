"""The interface by which training reads a site's features, wherever they come from."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

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

    def neighbours(self, k: int, dropout: float = 0.0, seed: int = 0) -> np.ndarray:
        """Return each image's k most similar other images, nearest first: int64 [N, k].

        They are compared without a share ``dropout`` of the channels, drawn by ``seed`` for each image.
        """


@runtime_checkable
class Coloured(Protocol):
    """A source that also kept how its patches look."""

    def colours(self, indices: list[int]) -> torch.Tensor:
        """Return the mean colour of each patch, in 0..1: float32 [B, h*w, 3]."""


@runtime_checkable
class Augmented(Protocol):
    """A source that also kept features of augmented views of its images."""

    def augmented(self, indices: list[int], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a view of each image: features [B, C, h, w], and where in the image its patches lie [B,
        h*w, 2].

        Places are (x, y) in [-1, 1], the centres of the image's outer patches.
        """


def tokens_of(source: FeatureSource, indices: list[int]) -> torch.Tensor:
    """Return the features of these images token-major, one patch a row: [B, h*w, C]."""
    return source.batch(indices).flatten(2).transpose(1, 2)
