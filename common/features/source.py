"""Features of a site's images as everything reads them that trains, counts or clusters, and nearest neighbors.

Nothing here depends on a backbone, on labels, or on where the arrays come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from common.data.augment import Augmentation
from common.errors import UserError
from common.seeds import numpy_generator

Indices = Sequence[int] | NDArray[np.integer] | torch.Tensor

# similarities held at once: 32 MB in float64
_BLOCK_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class Views:
    """Features of V augmentations of N images: tokens [V, N, h*w, C], drawn by ``seed`` (see `Augmentation`)."""

    tokens: NDArray[Any]
    seed: int
    tiled: bool


class Features:
    """Frozen patch features of N images, read from a cache or from memory.

    Attributes:
        tokens: float16 or float32 [N, h*w, C], on disk (or in memory, see `from_arrays`).
        pooled: float32 [N, C], mean of an image's tokens.
        grid: (h, w).
        channels: C.
        weights_hash: of the backbone that made them.
        device: where `batch` puts its answer.
        name: of the shard, for messages.
    """

    def __init__(
        self,
        tokens: NDArray[Any],
        pooled: NDArray[np.float32],
        grid: tuple[int, int],
        weights_hash: str,
        device: str | torch.device = "cpu",
        name: str = "the shard",
        colours: NDArray[np.float16] | None = None,
        views: Views | None = None,
        check: Callable[[NDArray[Any]], None] | None = None,
    ) -> None:
        """Wrap arrays that belong together; shapes as in the class's attributes.

        ``check`` is called with rows before they are read, those of augmented views after those of all images. It
        raises `UserError` where one is damaged.
        """
        if tokens.ndim != 3 or tokens.shape[1] != grid[0] * grid[1]:
            raise ValueError(f"expected tokens [N, {grid[0] * grid[1]}, C], got {list(tokens.shape)}")
        self.tokens = tokens
        self.pooled = pooled
        self.grid = grid
        self.channels = int(tokens.shape[2])
        self.weights_hash = weights_hash
        self.device = torch.device(device)
        self.name = name
        self._colours = colours
        self._views = views
        self._check = check or (lambda rows: None)
        self._rows = np.asarray(tokens)  # the same memory; indexing a memmap object is slower

    @classmethod
    def from_arrays(
        cls,
        tokens: NDArray[np.float32],
        grid: tuple[int, int],
        weights_hash: str = "",
        colours: NDArray[np.floating[Any]] | None = None,
    ) -> Self:
        """Wrap tokens [N, h*w, C] that lie in memory, and colours [N, h*w, 3] where they are needed."""
        stored = None if colours is None else colours.astype(np.float16)
        return cls(tokens, tokens.mean(axis=1, dtype=np.float32), grid, weights_hash, colours=stored)

    def __len__(self) -> int:
        """Return N."""
        return len(self._rows)

    def batch(self, indices: Indices) -> torch.Tensor:
        """Return the features of some images, float32 [B, C, h, w], in channels-last memory."""
        # channels last saves a transposition: 1x1 convolutions read that layout as fast as any
        self._check(np.asarray(indices))
        rows = torch.from_numpy(self._rows[np.asarray(indices)]).to(self.device).float()
        return rows.transpose(1, 2).unflatten(2, self.grid)  # type: ignore[no-untyped-call,no-any-return]

    def colours(self, indices: Indices) -> torch.Tensor:
        """Return the mean colour of each cell, in 0..1: float32 [B, h*w, 3]."""
        if self._colours is None:
            raise ValueError("These features were made without colours; make them from images.")
        return torch.from_numpy(self._colours[np.asarray(indices)]).to(self.device).float()

    def augmented(self, indices: Indices, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw one of each image's views: float32 [B, C, h, w], and where its patches lie, [B, h*w, 2]."""
        if self._views is None:
            raise ValueError(
                "These features were made without augmented views; set cache.views to 1 or more."
            )
        images = np.asarray(indices)
        drawn = torch.randint(len(self._views.tokens), (len(images),), generator=generator).numpy()
        self._check((drawn + 1) * len(self) + images)
        rows = torch.from_numpy(self._views.tokens[drawn, images]).to(self.device).float()
        places = [
            Augmentation.draw(self._views.seed, int(image), int(view)).places(self.grid, self._views.tiled)
            for image, view in zip(images, drawn, strict=True)
        ]
        maps: torch.Tensor = rows.transpose(1, 2).unflatten(2, self.grid)  # type: ignore[no-untyped-call]
        return maps, torch.stack(places).to(self.device)

    def neighbours(self, k: int, dropout: float = 0.0, seed: int = 0) -> NDArray[np.int64]:
        """Return each image's k most similar other images, int64 [N, k], as `drop_channels` leaves them."""
        return nearest_neighbours(drop_channels(self.pooled, dropout, seed), k, self.name)


def tokens_of(source: Features, indices: Indices) -> torch.Tensor:
    """Return the features of these images token-major, one patch a row: [B, h*w, C]."""
    return source.batch(indices).flatten(2).transpose(1, 2)


def nearest_neighbours(pooled: NDArray[np.float32], k: int, name: str = "the shard") -> NDArray[np.int64]:
    """Return each image's k most similar other images, most similar first.

    Similarity is the cosine of pooled features (STEGO, Hamilton et al., 2022, section 4.1), compared
    exhaustively, in blocks of rows so that memory stays bounded. Among equals the lower index
    comes first.

    Args:
        pooled: [N, C], one vector an image.
        k: neighbours per image, 1 ... N - 1.
        name: how to call the shard in the message.

    Returns:
        int64 [N, k]; row i never holds i.

    Raises:
        UserError: where the shard has fewer than k + 1 images.
    """
    count = len(pooled)
    if count <= k:
        advice = f"set local.neighbours to at most {count - 1} or add images" if count > 1 else "add images"
        raise UserError(
            f"{name} holds {count} image{'s' if count != 1 else ''}, but local.neighbours = {k} needs "
            f"at least {k + 1}; {advice}."
        )
    units = pooled.astype(np.float64)
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
    found = np.empty((count, k), dtype=np.int64)
    rows = max(1, _BLOCK_ELEMENTS // count)
    for start in range(0, count, rows):
        block = units[start : start + rows]
        # cosines that agree to ten decimals count as equal, so that the answer depends neither on the block size
        # nor on the order in which the machine adds
        distance = np.round(-(block @ units.T), 10)
        own = np.arange(len(block))
        distance[own, start + own] = np.inf
        found[start : start + rows] = _k_smallest(distance, k)
    return found


def drop_channels(pooled: NDArray[np.float32], dropout: float, seed: int) -> NDArray[np.float32]:
    """Return pooled features [N, C] without a random share of their channels, another draw for each image.

    What pooling gives under channel dropout: a mask holds for all patches of an image, so that masking the
    mean is masking the patches.
    """
    if not dropout:
        return pooled
    kept = numpy_generator(seed).random(pooled.shape, dtype=np.float32) >= dropout
    # without the factor 1 / (1 - dropout): no cosine knows of it
    return np.where(kept, pooled, np.float32(0))


def _k_smallest(values: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Return the columns of each row's k smallest values, by value and then by column."""
    limit = np.partition(values, k - 1, axis=1)[:, k - 1 : k]
    row, column = np.nonzero(values <= limit)  # at least k a row, more where the k-th value is tied
    order = np.lexsort((column, values[row, column], row))
    first = np.searchsorted(row, np.arange(len(values)))
    chosen: NDArray[np.int64] = column[order][first[:, None] + np.arange(k)]
    return chosen
