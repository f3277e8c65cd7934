"""The feature cache: features of a site's images from its disk, made once where no cache fits.

`Features` satisfies `common.features.source.FeatureSource`. On a hit neither timm nor torchvision is imported.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from common.data.augment import Augmentation
from common.data.manifest import Shard
from common.errors import UserError
from common.features import store
from common.features.backbone_pass import BackbonePass, encode_images, in_float16
from common.features.neighbours import drop_channels, nearest_neighbours
from common.models import backbone as backbones
from common.models.inputs import backbone_entry, backbone_settings, weights_key
from common.settings.unsupervised import Cache, Model
from common.system.device import choose_device
from common.system.progress import Progress

Indices = Sequence[int] | NDArray[np.integer] | torch.Tensor


@dataclass(frozen=True)
class Views:
    """Features of V augmentations of N images: tokens [V, N, h*w, C], drawn by ``seed`` (see `Augmentation`)."""

    tokens: NDArray[Any]
    seed: int
    tiled: bool


class Features:
    """Frozen patch features of N images, read from a cache.

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
    ) -> None:
        """Wrap arrays that belong together; shapes as in the class's attributes."""
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
        """Return the features of some images, float32 [B, C, h, w], in channels-last memory.

        The last point saves a transposition: 1x1 convolutions read that layout as fast as any.
        """
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
        rows = torch.from_numpy(self._views.tokens[drawn, images]).to(self.device).float()
        places = [
            Augmentation.draw(self._views.seed, int(image), int(view)).places(self.grid, self._views.tiled)
            for image, view in zip(images, drawn, strict=True)
        ]
        maps: torch.Tensor = rows.transpose(1, 2).unflatten(2, self.grid)  # type: ignore[no-untyped-call]
        return maps, torch.stack(places).to(self.device)

    def neighbours(self, k: int, dropout: float = 0.0, seed: int = 0) -> NDArray[np.int64]:
        """Return each image's k most similar other images, int64 [N, k] (see `nearest_neighbours`)."""
        return nearest_neighbours(drop_channels(self.pooled, dropout, seed), k, self.name)


def features_key(shard: Shard, model: Model, cache: Cache, seed: int, device: torch.device) -> store.Key:
    """Identify the cache of a shard's features as ``device`` makes them; `UserError` where a file is missing."""
    views = f"{cache.views}:{seed}" if cache.views else ""  # views follow from the seed as well
    arithmetic = "float16" if in_float16(cache, device) else ""
    return store.cache_key(shard, model, weights_key(model, seed), cache.dtype, views, arithmetic)


def features_header(
    images: int, backbone: backbones.Backbone, model: Model, cache: Cache, seed: int
) -> store.Header:
    """Describe the cache of so many images before it is made: what it will hold, and the bytes of its files."""
    return store.Header.describe(
        images=images * (1 + cache.views),
        grid=backbone.grid,
        channels=backbone.channels,
        dtype=cache.dtype,
        weights_hash=backbone.weights_hash,
        weights_key=weights_key(model, seed),
        settings=backbone_settings(model),
    )


def open_features(
    shard: Shard,
    model: Model,
    cache: Cache,
    cache_dir: str | Path,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Features:
    """Return the features of a shard from the cache, made now where there is none that fits.

    Args:
        shard: which images; no label is opened.
        model: backbone, weights, input size, crop: all that features depend on is part of the key.
        cache: precision on disk and, on CUDA, of the arithmetic.
        cache_dir: folder on the site's own disk; several shards and models may share it.
        device: runs the backbone, and receives batches; None: CUDA where there is any.
        seed: of random backbone weights.
        progress: called with (images done, images in all) while features are made, never on a hit.

    Raises:
        UserError: missing or broken images, backbones that do not load (see `load_backbone`), a disk
            that is full or read-only, features that are not finite, a GPU without room for one picture.
    """
    if not len(shard):
        raise UserError(f"Shard {shard.name} holds no images; list at least one in {shard.path}.")
    folder = Path(cache_dir)
    place = choose_device(device)
    key = features_key(shard, model, cache, seed, place)
    stored = store.read(folder, key)
    if stored is None:
        with store.shard_lock(folder, key):
            stored = store.read(folder, key)  # another process may have made it while we waited
            if stored is None:
                store.prune(folder, key)
                _build(shard, model, cache, folder, key, place, seed, progress)
                stored = store.read(folder, key)
    if stored is None:
        raise UserError(
            f"The feature cache {folder / key.folder} went away while it was opened; start again."
        )
    header, count = stored.header, len(shard)
    views = None
    if cache.views:
        rows = np.asarray(stored.tokens[count:])
        views = Views(
            rows.reshape(cache.views, count, *rows.shape[1:]),
            seed,
            tiled=backbone_entry(model).facts.stride is None,
        )
    return Features(
        stored.tokens[:count],
        stored.pooled[:count],
        header.grid,
        header.weights_hash,
        place,
        shard.name,
        stored.colours[:count],
        views,
    )


def _build(
    shard: Shard,
    model: Model,
    cache: Cache,
    folder: Path,
    key: store.Key,
    device: torch.device,
    seed: int,
    progress: Progress | None,
) -> None:
    """Run the backbone once over the shard, then over each round of augmented views; write what it says."""
    backbone = backbones.load_backbone(model, seed, device)
    header = features_header(len(shard), backbone, model, cache, seed)
    run = BackbonePass(backbone, device, in_float16(cache, device))
    with store.writing(folder, key, header) as writer:
        done = 0
        for view in range(-1, cache.views):  # -1: the picture as it is
            seen = None if view < 0 else functools.partial(_augment, seed=seed, view=view)
            for indices, tokens, colours in encode_images(run, shard, model, range(len(shard)), seen):
                values = tokens.cpu().numpy()
                _check_finite(values, cache.dtype, shard, indices, run.float16)
                writer.append(values, tokens.mean(dim=1).cpu().numpy(), colours.numpy())
                done += len(indices)
                if progress is not None:
                    progress(done, header.images)


def _augment(picture: torch.Tensor, index: int, seed: int, view: int) -> torch.Tensor:
    return Augmentation.draw(seed, index, view).apply(picture)


def _check_finite(
    values: NDArray[np.float32], dtype: str, shard: Shard, indices: Sequence[int], float16: bool
) -> None:
    """Refuse features that are not finite, as computed or as stored; name the first image with any."""
    finite = np.isfinite(values).all(axis=(1, 2))
    if not finite.all():
        culprit = shard.image_path(indices[int(np.argmin(finite))])
        if float16:  # the likelier cause: 65504 is its largest number
            raise UserError(
                f"The backbone gives features that are not finite for {culprit}, computed in float16; set "
                "cache.mixed-precision to false."
            )
        raise UserError(
            f"The backbone gives features that are not finite for {culprit}; check model.weights (a damaged "
            "file, or another architecture's)."
        )
    limit = float(np.finfo(np.dtype(dtype)).max)
    if float(np.abs(values).max()) > limit:
        raise UserError(
            f"Features of shard {shard.name} exceed {limit:.0f}, the largest {dtype}; "
            "set cache.dtype to 'float32'."
        )
