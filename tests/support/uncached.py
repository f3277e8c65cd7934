"""The reference that the feature cache must match: features computed by the backbone every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from common.data.images import entry_image
from common.data.manifest import Shard
from common.features.cache import BackbonePass, cell_colours, encode_images
from common.features.source import Indices, drop_channels, nearest_neighbours
from common.models import backbone as backbones
from common.models.backbone import prepare_image
from common.settings.unsupervised import Model
from common.system.device import choose_device


class UncachedFeatures:
    """The same features, computed by the backbone every time: the reference that the cache must match."""

    def __init__(self, shard: Shard, model: Model, device: str | torch.device | None, seed: int) -> None:
        """Load the backbone; images are read when asked for."""
        self.device = choose_device(device)
        self._shard = shard
        self._model = model
        self._backbone = backbones.load_backbone(model, seed, self.device)
        self._pooled: NDArray[np.float32] | None = None
        self.grid = self._backbone.grid
        self.channels = self._backbone.channels
        self.weights_hash = self._backbone.weights_hash

    def __len__(self) -> int:
        """Return N."""
        return len(self._shard)

    @property
    def pooled(self) -> NDArray[np.float32]:
        """Mean of an image's tokens, float32 [N, C]; one pass over the shard when first asked for."""
        if self._pooled is None:
            self._pooled = np.concatenate(
                [tokens.mean(dim=1).cpu().numpy() for _, tokens, _ in self._encode(range(len(self)))]
            )
        return self._pooled

    def batch(self, indices: Indices) -> torch.Tensor:
        """Return the features of some images, float32 [B, C, h, w]."""
        tokens = torch.cat([part for _, part, _ in self._encode([int(i) for i in indices])])
        return tokens.transpose(1, 2).unflatten(2, self.grid)  # type: ignore[no-untyped-call,no-any-return]

    def colours(self, indices: Indices) -> torch.Tensor:
        """Return the mean colour of each cell, in 0..1: float32 [B, h*w, 3]."""
        pictures = [prepare_image(entry_image(self._shard, int(index)), self._model) for index in indices]
        return cell_colours(torch.stack(pictures), self.grid).to(self.device)

    def neighbours(self, k: int, dropout: float = 0.0, seed: int = 0) -> NDArray[np.int64]:
        """Return each image's k most similar other images, int64 [N, k]."""
        return nearest_neighbours(drop_channels(self.pooled, dropout, seed), k, self._shard.name)

    def _encode(self, indices: Sequence[int]) -> Iterator[tuple[Sequence[int], torch.Tensor, torch.Tensor]]:
        return encode_images(BackbonePass(self._backbone, self.device), self._shard, self._model, indices)
