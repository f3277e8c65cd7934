"""Feature cache on disk, safe against a crash, a full disk and a second process.

A cache is a folder ``SHARD-MODEL-IMAGES`` (three parts of its key) that appears in one step, complete:

* ``tokens.bin``: float16 or float32 [N, h*w, C], row after row;
* ``pooled.bin``: float32 [N, C], the mean over an image's tokens;
* ``colours.bin``: float16 [N, h*w, 3], the mean colour of the image in each cell of the grid, in 0..1;
* ``sums.bin``: uint32 [N], the CRC-32 of each row of tokens;
* ``header.json``: shapes, weights hash, settings, and CRC-32 of itself and of the small files (`Header`).

Small files are checked when a cache is opened, a row of tokens when a process first reads it: at 5 GB/s that is not
felt. Caches of earlier releases have no sums and are read unchecked.

Where augmented views are kept as well, N counts them: all images, then all first views, and so on.
While it is written its name starts with a dot. One lock per shard (``flock``, so it ends with the process
that holds it, however that ends) lets the second of two processes wait and then find the work done.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.data.images import images_key
from common.data.manifest import Shard
from common.errors import UserError
from common.features.checksums import HEADER, SUMS, RowSums, checked_sums
from common.models.backbone import Backbone, backbone_settings, weights_key
from common.settings.unsupervised import Cache, Model

_log = logging.getLogger(__name__)

_FORMAT: Final = 2
_FILES = ("tokens.bin", "pooled.bin", "colours.bin")
# caches of one shard that may lie side by side (other backbones or sizes); the least recently used go
KEEP = 4


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
    images: Annotated[int, Field(gt=0)]
    grid: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
    channels: Annotated[int, Field(gt=0)]
    dtype: Literal["float16", "float32"]
    token_bytes: int
    pooled_bytes: int
    colour_bytes: int
    weights_hash: str
    weights_key: str
    settings: dict[str, str | int]
    # by file, and under "header" that of the header without it; None: made by an earlier release
    sums: dict[str, int] | None = None

    def checksum(self) -> int:
        """Return the CRC-32 of everything else that the header says."""
        others = {name: value for name, value in (self.sums or {}).items() if name != HEADER}
        return zlib.crc32(self.model_copy(update={"sums": others}).model_dump_json().encode())

    @classmethod
    def describe(cls, images: int, backbone: Backbone, model: Model, cache: Cache, seed: int) -> Header:
        """Describe the cache of so many images before it is made, and the bytes of its files."""
        rows = images * (1 + cache.views)
        patches, channels = backbone.grid[0] * backbone.grid[1], backbone.channels
        return cls(
            images=rows,
            grid=backbone.grid,
            channels=channels,
            dtype=cache.dtype,
            token_bytes=rows * patches * channels * np.dtype(cache.dtype).itemsize,
            pooled_bytes=rows * channels * 4,
            colour_bytes=rows * patches * 3 * 2,
            weights_hash=backbone.weights_hash,
            weights_key=weights_key(model, seed),
            settings=backbone_settings(model),
        )

    @property
    def files(self) -> dict[str, int]:
        """Return the bytes of each file of numbers."""
        return dict(zip(_FILES, (self.token_bytes, self.pooled_bytes, self.colour_bytes), strict=True))

    @property
    def size(self) -> int:
        """Return the bytes of all files of numbers."""
        return sum(self.files.values())


@dataclass(frozen=True)
class Stored:
    """An opened cache: tokens [N, h*w, C] stay on disk; pooled [N, C] and colours [N, h*w, 3] are in memory."""

    header: Header
    tokens: NDArray[Any]
    pooled: NDArray[np.float32]
    colours: NDArray[np.float16]
    sums: RowSums | None = None


def in_float16(cache: Cache, device: torch.device) -> bool:
    """Tell whether features are computed in float16: on CUDA, where it is asked for; a CPU would be slower."""
    return cache.mixed_precision and device.type == "cuda"


def features_key(shard: Shard, model: Model, cache: Cache, seed: int, device: torch.device) -> Key:
    """Identify the cache of a shard's features as ``device`` makes them, by all that they follow from.

    Raises `UserError` where an image or the weights file is missing.
    """
    where = str(shard.path.resolve())
    slug = re.sub(r"[^A-Za-z0-9_.]+", "_", shard.name).lstrip(".")[:40]
    # augmented views follow from the seed as well; keys of plain float32 features are as before there were others
    views = f"{cache.views}:{seed}" if cache.views else ""
    parts = [_FORMAT, weights_key(model, seed), backbone_settings(model), cache.dtype, views]
    parts += ["float16"] if in_float16(cache, device) else []
    features = json.dumps(parts, sort_keys=True)
    return Key(f"{slug}-{_short(f'{where}|{shard.name}', 8)}", _short(features, 16), images_key(shard)[:16])


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
        if header.token_bytes != math.prod(shape) * np.dtype(header.dtype).itemsize:
            raise ValueError("its shape does not fit its size")
        tokens = np.memmap(folder / "tokens.bin", dtype=header.dtype, mode="r", shape=shape)
        pooled = np.fromfile(folder / "pooled.bin", dtype=np.float32).reshape(header.images, header.channels)
        colours = np.fromfile(folder / "colours.bin", dtype=np.float16).reshape(*shape[:2], 3)
        found: dict[str, int | NDArray[Any]]
        found = {HEADER: header.checksum(), "pooled.bin": pooled, "colours.bin": colours}
        sums = None if header.sums is None else checked_sums(folder, header.images, header.sums, found)
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
    return Stored(header, tokens, pooled, colours, sums)


class Writer:
    """Appends features to a cache in the making."""

    def __init__(self, folder: Path, dtype: str) -> None:
        """Open the files of a new cache in ``folder``."""
        self._dtypes: tuple[np.dtype[Any], ...] = (
            np.dtype(dtype),
            np.dtype(np.float32),
            np.dtype(np.float16),
        )
        self._files: list[BinaryIO] = [(folder / name).open("wb") for name in _FILES]
        self._folder = folder
        self._rows: list[int] = []
        self._sums = dict.fromkeys(_FILES[1:], 0)

    def append(self, *arrays: NDArray[np.float32]) -> None:
        """Write tokens [B, h*w, C], pooled [B, C] and colours [B, h*w, 3]."""
        # written, not mapped: a full disk would kill a process that writes to a memory map
        for name, file, dtype, array in zip(_FILES, self._files, self._dtypes, arrays, strict=True):
            written = np.ascontiguousarray(array, dtype=dtype)
            file.write(written.data)
            if name in self._sums:
                self._sums[name] = zlib.crc32(written.data, self._sums[name])
            else:
                self._rows += [zlib.crc32(row.data) for row in written]

    def sealed(self, header: Header) -> Header:
        """Write the sums of rows, and return the header with all sums."""
        rows = np.array(self._rows, np.uint32)
        (self._folder / SUMS).write_bytes(rows.tobytes())
        header = header.model_copy(update={"sums": self._sums | {SUMS: zlib.crc32(rows.data)}})
        return header.model_copy(update={"sums": (header.sums or {}) | {HEADER: header.checksum()}})

    def close(self, sync: bool) -> None:
        """Close the files, after flushing them to the disk if they are worth it."""
        with ExitStack() as closing:  # all get closed, even where the disk is full
            for file in self._files:
                closing.enter_context(file)
            for file in self._files if sync else ():
                file.flush()
                os.fsync(file.fileno())


@contextmanager
def writing(cache_dir: Path, key: Key, header: Header) -> Iterator[Writer]:
    """Yield a `Writer`; the cache appears, complete, when the block ends well, and not at all otherwise.

    Raises `UserError`, naming the bytes needed, where the disk is full.
    """
    if shutil.disk_usage(cache_dir).free < header.size:
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
            file.write(writer.sealed(header).model_dump_json(indent=1))
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
    free = shutil.disk_usage(cache_dir).free
    halve = ", or set cache.dtype to 'float16'" if header.dtype == "float32" else ""
    return UserError(
        f"The features need {header.size} bytes ({header.size / 1e9:.2f} GB) in {cache_dir}, where {free} bytes are "
        f"free; make room or choose another cache folder{halve}."
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _short(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
