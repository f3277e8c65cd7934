"""The feature cache: features of a site's images from its disk, made by one pass of the backbone where none fits.

On a hit neither timm nor torchvision is imported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from common.data.augment import Augmentation
from common.data.images import entry_image
from common.data.manifest import Shard
from common.errors import UserError
from common.features import store
from common.features.lock import prune, shard_lock
from common.features.source import Features, Views
from common.models import backbone as backbones
from common.models.backbone import corner_stride, prepare_image
from common.settings.unsupervised import Cache, Model
from common.system.cli import Progress
from common.system.device import choose_device

_log = logging.getLogger(__name__)

# images that the backbone sees at once; on the CPU more is no faster, but takes memory: the activations of a whole
# image for each
GPU_BATCH, CPU_BATCH = 16, 2


def find_cache(
    shard: Shard, model: Model, cache: Cache, cache_dir: Path, seed: int, device: str | None = None
) -> store.Header | None:
    """Return the header of a shard's feature cache where a fitting one exists for this device (None: as found).

    Raises `UserError` where an image or the weights file is missing.
    """
    found = store.read(cache_dir, store.features_key(shard, model, cache, seed, choose_device(device)))
    return None if found is None else found.header


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
    key = store.features_key(shard, model, cache, seed, place)
    stored = store.read(folder, key)
    if stored is None:
        with shard_lock(folder, key):
            stored = store.read(folder, key)  # another process may have made it while we waited
            if stored is None:
                prune(folder, key)
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
            tiled=corner_stride(model) is None,
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
        None if stored.sums is None else partial(stored.sums.check, np.asarray(stored.tokens)),
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
    header = store.Header.describe(len(shard), backbone, model, cache, seed)
    run = BackbonePass(backbone, device, store.in_float16(cache, device), cache.batch)
    with store.writing(folder, key, header) as writer:
        done = 0
        for view in range(-1, cache.views):  # -1: the picture as it is
            seen = None if view < 0 else partial(_augment, seed=seed, view=view)
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


class BackbonePass:
    """Runs a backbone over pictures; ``batch`` is how many it sees at once, and falls where a GPU has no room."""

    def __init__(
        self, backbone: backbones.Backbone, device: torch.device, float16: bool = False, batch: int = 0
    ) -> None:
        """Take a backbone that is on ``device``; ``float16`` lets matrix products and convolutions use it.

        ``batch`` 0 takes what suits the device.
        """
        self.backbone = backbone
        self.device = device
        self.float16 = float16
        self.batch = batch or (CPU_BATCH if device.type == "cpu" else GPU_BATCH)

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
            # several sites may share a GPU, and how much of it is free changes while they work: take less, for
            # good
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
