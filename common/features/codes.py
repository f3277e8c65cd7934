"""Codes of a site's images, kept beside its features: they are smoothed once, not in every pass of k-means."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from common.features.source import Features, tokens_of
from common.models.codes import codes_within, picture_codes
from common.models.head import SegmentationHead, state_to_numpy
from common.settings.schema import RunConfig

# images in memory at a time; another number changes sums by rounding alone
_BATCH = 32


@torch.no_grad()
def unit_codes(
    features: Features, head: SegmentationHead, config: RunConfig, centered: bool | None = None
) -> Iterator[torch.Tensor]:
    """Yield the unit codes of all images, float64 [B, h*w, D], as `codes_within` leaves them, dropout off.

    An image of one kind of thing (``things.each-picture``) has one code [B, 1, D]: that of what stands out.
    ``centered`` is one of ``config.centerings``, by default the first. Where smoothing makes them dear they are kept in
    float16 beside the features, for the next pass under the same head. Raises ValueError where codes are not finite.
    """
    centered = config.centerings[0] if centered is None else centered
    folder = _folder_of(features) if config.codes.reach else None
    path = None if folder is None else folder / f"codes-{_key(head, config)}-{int(centered)}.npy"
    stored = None if path is None else _read(path, len(features))
    if stored is not None:
        for start in range(0, len(features), _BATCH):
            rows = torch.from_numpy(np.array(stored[start : start + _BATCH]))
            yield functional.normalize(rows.to(features.device).double(), dim=-1)
        return
    training = head.training
    head.eval()
    try:
        with _writing(path) as keep:
            for start in range(0, len(features), _BATCH):
                indices = list(range(start, min(start + _BATCH, len(features))))
                codes = _made(features, indices, head, config, centered)
                if not torch.isfinite(codes).all():
                    raise ValueError(
                        f"The head gives codes that are not finite for images {indices[0]} to {indices[-1]}; "
                        "its parameters or the cached features are broken."
                    )
                if path is not None:  # this pass counts what the next ones read
                    codes = functional.normalize(codes, dim=-1).half()
                    keep(len(features), start, codes.cpu().numpy())
                yield functional.normalize(codes.double(), dim=-1)
    finally:
        head.train(training)


def _made(
    features: Features, indices: list[int], head: SegmentationHead, config: RunConfig, centered: bool
) -> torch.Tensor:
    codes = head.project(tokens_of(features, indices))
    one = config.things.each_picture == "one"
    if not (config.codes.reach or centered or one):
        return codes
    maps = codes.transpose(1, 2).unflatten(2, features.grid)  # type: ignore[no-untyped-call]
    colors = features.colours(indices) if config.codes.reach else None
    within = codes_within(maps, colors, config, centered)
    if one:
        return picture_codes(within)[1].unsqueeze(1)
    return within.flatten(2).transpose(1, 2)


def _folder_of(features: Features) -> Path | None:
    """Return the folder of the feature cache; None for features that lie in memory."""
    name = getattr(features.tokens, "filename", None)
    return None if name is None else Path(name).parent


def _key(head: SegmentationHead, config: RunConfig) -> str:
    digest = hashlib.sha256(config.codes.model_dump_json().encode() + config.things.each_picture.encode())
    for name, value in sorted(state_to_numpy(head).items()):
        digest.update(name.encode() + value.tobytes())
    return digest.hexdigest()[:24]


def _read(path: Path, images: int) -> np.ndarray | None:
    try:
        stored: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    if stored.ndim != 3 or len(stored) != images:
        return None
    end = stored.offset + stored.nbytes  # type: ignore[attr-defined]
    with path.open("rb") as file:
        file.seek(end)
        kept = file.read()  # nothing in files of an earlier release
    return stored if kept in (b"", _sum(path, end)) else None


def _sum(path: Path, size: int) -> bytes:
    """Return the CRC-32 of the first ``size`` bytes of a file, as it stands behind them."""
    return zlib.crc32(np.memmap(path, np.uint8, "r", shape=(size,)).data).to_bytes(4, "big")


@contextmanager
def _writing(path: Path | None) -> Iterator[Callable[[int, int, np.ndarray], None]]:
    """Yield what keeps the codes of images from ``start`` on; the file appears, whole, when the block ends well.

    It takes the place of codes of another head. A disk that is full costs speed alone. Memory stays that of a batch.
    """
    partial: Path | None = None
    rows: np.ndarray | None = None

    def keep(images: int, start: int, codes: np.ndarray) -> None:
        nonlocal partial, rows
        if path is None or (rows is None and start):  # it could not be written
            return
        try:
            if rows is None:
                handle, name = tempfile.mkstemp(prefix=".codes-", suffix=".partial", dir=path.parent)
                os.close(handle)
                partial = Path(name)
                shape = (images, *codes.shape[1:])
                rows = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
            rows[start : start + len(codes)] = codes
        except OSError:
            rows = None

    try:
        yield keep
        if path is not None and partial is not None and rows is not None:
            with suppress(OSError):
                rows.flush()  # type: ignore[attr-defined]
                with partial.open("r+b") as file:
                    size = file.seek(0, os.SEEK_END)
                    file.write(_sum(partial, size))
                for other in path.parent.glob("codes-*.npy"):
                    if other.name[:-6] != path.name[:-6]:  # those of another head, centered or not
                        other.unlink(missing_ok=True)
                partial.replace(path)
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
