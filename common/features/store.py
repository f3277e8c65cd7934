"""Feature cache on disk, safe against a crash, a full disk and a second process.

A cache is a folder ``SHARD-MODEL-IMAGES`` (three parts of its key) that appears in one step, complete:

* ``tokens.bin``: float16 or float32 [N, h*w, C], row after row;
* ``pooled.bin``: float32 [N, C], the mean over an image's tokens;
* ``colours.bin``: float16 [N, h*w, 3], the mean colour of the image in each cell of the grid, in 0..1;
* ``header.json``: shapes, weights hash, settings (`Header`).

Where augmented views are kept as well, N counts them: all images, then all first views, and so on.
While it is written its name starts with a dot. One lock per shard (``flock``, so it ends with the process
that holds it, however that ends) lets the second of two processes wait and then find the work done.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from common.data.manifest import Shard
from common.errors import UserError
from common.models.inputs import backbone_settings
from common.settings.unsupervised import Model

_log = logging.getLogger(__name__)

_FORMAT: Final = 2
KEEP = 4
"""Caches of one shard that may lie side by side (other backbones or sizes); the least recently used go."""


@dataclass(frozen=True)
class Key:
    """What a cache belongs to."""

    shard: str
    model: str
    images: str

    @property
    def folder(self) -> str:
        """The name of the cache's folder."""
        return f"{self.shard}-{self.model}-{self.images}"


class Header(BaseModel):
    """What ``header.json`` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    images: int
    grid: tuple[int, int]
    channels: int
    dtype: Literal["float16", "float32"]
    token_bytes: int
    pooled_bytes: int
    colour_bytes: int
    weights_hash: str
    weights_key: str
    settings: dict[str, str | int]

    @classmethod
    def describe(
        cls,
        images: int,
        grid: tuple[int, int],
        channels: int,
        dtype: Literal["float16", "float32"],
        weights_hash: str,
        weights_key: str,
        settings: dict[str, str | int],
    ) -> Header:
        """Fill in the sizes of the files."""
        return cls(
            images=images,
            grid=grid,
            channels=channels,
            dtype=dtype,
            token_bytes=images * grid[0] * grid[1] * channels * np.dtype(dtype).itemsize,
            pooled_bytes=images * channels * 4,
            colour_bytes=images * grid[0] * grid[1] * 3 * 2,
            weights_hash=weights_hash,
            weights_key=weights_key,
            settings=settings,
        )

    @property
    def files(self) -> dict[str, int]:
        """Return the bytes of each file of numbers."""
        return {
            "tokens.bin": self.token_bytes,
            "pooled.bin": self.pooled_bytes,
            "colours.bin": self.colour_bytes,
        }


@dataclass(frozen=True)
class Stored:
    """An opened cache: tokens [N, h*w, C] stay on disk; pooled [N, C] and colours [N, h*w, 3] are in memory."""

    header: Header
    tokens: NDArray[Any]
    pooled: NDArray[np.float32]
    colours: NDArray[np.float16]


def cache_key(
    shard: Shard, model: Model, weights: str, dtype: str, views: str = "", arithmetic: str = ""
) -> Key:
    """Identify a cache by all that its content follows from.

    ``views`` tells augmentations, if there are any, ``arithmetic`` in what the backbone computes, if not float32.

    Images count by path below the root, view, size and modification time, in the order of the shard, so that
    a data root may be mounted elsewhere. Raises `UserError` where an image is missing.
    """
    where = str(shard.path.resolve())
    slug = re.sub(r"[^A-Za-z0-9_.]+", "_", shard.name).lstrip(".")[:40]
    images = hashlib.sha256()
    for index, entry in enumerate(shard.entries):
        try:
            state = shard.image_path(index).stat()
        except OSError as error:
            raise UserError(
                f"Image {shard.image_path(index)} of shard {shard.name} cannot be found "
                f"({error.strerror or error}); correct the manifest or the data root."
            ) from None
        shown = [entry.image] if entry.view is None else [entry.image, entry.view]
        images.update(json.dumps([*shown, state.st_size, state.st_mtime_ns]).encode())
    parts = [_FORMAT, weights, backbone_settings(model), dtype, views]
    features = json.dumps(parts + ([arithmetic] if arithmetic else []), sort_keys=True)
    return Key(f"{slug}-{_short(f'{where}|{shard.name}', 8)}", _short(features, 16), images.hexdigest()[:16])


def read(cache_dir: Path, key: Key) -> Stored | None:
    """Open the cache of ``key``; None where there is none, or (with a warning) where it is damaged."""
    folder = cache_dir / key.folder
    try:
        header = Header.model_validate_json((folder / "header.json").read_bytes())
        for name, expected in header.files.items():
            size = (folder / name).stat().st_size
            if size != expected:
                raise ValueError(f"{name} has {size} bytes instead of {expected}")
        shape = (header.images, header.grid[0] * header.grid[1], header.channels)
        tokens = np.memmap(folder / "tokens.bin", dtype=header.dtype, mode="r", shape=shape)
        pooled = np.fromfile(folder / "pooled.bin", dtype=np.float32).reshape(header.images, header.channels)
        colours = np.fromfile(folder / "colours.bin", dtype=np.float16).reshape(*shape[:2], 3)
        with suppress(OSError):  # a cache that is mounted read-only serves as well
            os.utime(folder)  # last use
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_dir():
            _log.warning("feature cache %s is incomplete; it is made anew", folder)
        return None
    except (ValidationError, ValueError) as error:
        _log.warning("feature cache %s is damaged (%s); it is made anew", folder, error)
        return None
    except PermissionError:
        raise UserError(f"The feature cache {folder} may not be read; give this user access to it.") from None
    return Stored(header, tokens, pooled, colours)


@contextmanager
def shard_lock(cache_dir: Path, key: Key) -> Iterator[None]:
    """Hold the lock of a shard; wait where another process builds its features.

    What a killed process left half-written is cleaned away: nobody else writes while we hold the lock.
    """
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        handle = (cache_dir / f".{key.shard}.lock").open("ab")
    except OSError as error:
        raise UserError(
            f"The feature cache folder {cache_dir} cannot be written ({error.strerror or error}); "
            "choose a cache folder that you may write to."
        ) from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("another process makes the features of %s; waiting for it", key.shard)
            fcntl.flock(handle, fcntl.LOCK_EX)
        for stale in cache_dir.glob(f".{key.shard}-*.partial"):
            shutil.rmtree(stale, ignore_errors=True)
        yield


def prune(cache_dir: Path, key: Key) -> None:
    """Remove the shard's caches of images that have changed since, and all but the `KEEP` - 1 last used.

    To be called with the lock held, before room is needed. Readers that have a file open keep it.
    """
    others = [path for path in cache_dir.glob(f"{key.shard}-*") if path.is_dir() and path.name != key.folder]
    current = [path for path in others if path.name.endswith(f"-{key.images}")]
    current.sort(key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    for path in others:
        if path not in current[: KEEP - 1]:
            _log.info("removing the old feature cache %s", path)
            shutil.rmtree(path, ignore_errors=True)


class Writer:
    """Appends features to a cache in the making."""

    def __init__(self, folder: Path, dtype: str) -> None:
        """Open the files of a new cache in ``folder``."""
        self._dtype = np.dtype(dtype)
        self._tokens: BinaryIO = (folder / "tokens.bin").open("wb")
        self._pooled: BinaryIO = (folder / "pooled.bin").open("wb")
        self._colours: BinaryIO = (folder / "colours.bin").open("wb")

    def append(
        self, tokens: NDArray[np.float32], pooled: NDArray[np.float32], colours: NDArray[np.float32]
    ) -> None:
        """Write tokens [B, h*w, C], pooled [B, C], colours [B, h*w, 3]; a full disk would kill a memory map."""
        self._tokens.write(np.ascontiguousarray(tokens, dtype=self._dtype).data)
        self._pooled.write(np.ascontiguousarray(pooled, dtype=np.float32).data)
        self._colours.write(np.ascontiguousarray(colours, dtype=np.float16).data)

    def close(self, sync: bool) -> None:
        """Close the files, after flushing them to the disk if they are worth it."""
        with self._tokens, self._pooled, self._colours:  # all get closed, even where the disk is full
            if sync:
                for file in (self._tokens, self._pooled, self._colours):
                    file.flush()
                    os.fsync(file.fileno())


@contextmanager
def writing(cache_dir: Path, key: Key, header: Header) -> Iterator[Writer]:
    """Yield a `Writer`; the cache appears, complete, when the block ends well, and not at all otherwise.

    Raises `UserError`, naming the bytes needed, where the disk is full.
    """
    if shutil.disk_usage(cache_dir).free < sum(header.files.values()):
        raise _disk_full(cache_dir, header)
    target = cache_dir / key.folder
    partial = Path(tempfile.mkdtemp(prefix=f".{key.shard}-", suffix=".partial", dir=cache_dir))
    try:
        writer = Writer(partial, header.dtype)
        complete = False
        try:
            yield writer
            complete = True
        finally:
            writer.close(sync=complete)
        with (partial / "header.json").open("w", encoding="utf-8") as file:
            file.write(header.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o777 & ~_umask())  # mkdtemp makes folders private; a cache may be shared
        if target.exists():  # a damaged one
            shutil.rmtree(target)
        partial.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(cache_dir, header) from None
        raise UserError(
            f"The feature cache {target} cannot be written ({error.strerror or error}); "
            "choose another cache folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _disk_full(cache_dir: Path, header: Header) -> UserError:
    needed = sum(header.files.values())
    free = shutil.disk_usage(cache_dir).free
    halve = ", or set cache.dtype to 'float16'" if header.dtype == "float32" else ""
    return UserError(
        f"The features need {needed} bytes ({needed / 1e9:.2f} GB) in {cache_dir}, where {free} bytes are "
        f"free; make room or choose another cache folder{halve}."
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _short(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
