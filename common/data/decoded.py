"""Decoded images, and labels where a task may open them, in files that stay over rounds.

In a deployment every round is a process of its own, which would decode all its images anew. A file is found by what
was decoded (path, size, time of change, view, class table), and refused by a hash of its pixels where it was damaged.
Pixels are mapped into memory, not read: several processes of a site share them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import struct
from pathlib import Path

import numpy as np

from common.data.classes import ClassTable
from common.data.images import Bytes
from common.data.manifest import Shard
from common.errors import UserError
from common.system.atomic import atomic_write_bytes

Decoded = tuple[Bytes, Bytes | None]

# Before the pixels: SHA-256 of the rest, height, width, and whether a label follows the image.
_HEADER = struct.Struct("<32sII?7x")
_SUFFIX = ".pixels"


class DecodedCache:
    """Files of a folder with at most ``limit`` bytes in all; the first that come stay, those unused longest go."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Count what lies there, and remove the oldest where that is too much."""
        self.folder, self.limit = folder, limit
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in folder.glob(f"*{_SUFFIX}"):
                with contextlib.suppress(OSError):  # another process was quicker
                    state = path.stat()
                    found.append((state.st_mtime, state.st_size, path))
        self.used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if self.used <= limit:
                break
            path.unlink(missing_ok=True)
            self.used -= size
        self._checked: set[str] = set()

    def read(self, key: str) -> Decoded | None:
        """Return image uint8 [H, W, 3] and label uint8 [H, W] or None; None for both where no sound file has them."""
        path = self.folder / f"{key}{_SUFFIX}"
        try:
            with path.open("rb") as file:
                pages = mmap.mmap(
                    file.fileno(), 0, access=mmap.ACCESS_COPY
                )  # torch wants pixels that it may write to
            digest, height, width, labelled = _HEADER.unpack_from(pages)
        except (OSError, ValueError, struct.error):
            return None
        pixels = height * width
        body = memoryview(pages)[_HEADER.size :]
        sound = len(body) == pixels * (4 if labelled else 3)
        if sound and key not in self._checked:
            sound = hashlib.sha256(body).digest() == digest
        if not sound:
            path.unlink(missing_ok=True)
            return None
        self._checked.add(key)
        flat = np.frombuffer(body, dtype=np.uint8)
        image = flat[: 3 * pixels].reshape(height, width, 3)
        return image, flat[3 * pixels :].reshape(height, width) if labelled else None

    def write(self, key: str, pair: Decoded) -> None:
        """Keep a pair where there is room; a disk that is full keeps nothing, and training goes on."""
        image, label = pair
        body = image.tobytes() + (b"" if label is None else label.tobytes())
        size = _HEADER.size + len(body)
        if self.used + size > self.limit:
            return
        header = _HEADER.pack(hashlib.sha256(body).digest(), *image.shape[:2], label is not None)
        with contextlib.suppress(OSError, UserError):
            atomic_write_bytes(self.folder / f"{key}{_SUFFIX}", header + body)
            self.used += size


def decoded_key(shard: Shard, index: int, table: ClassTable | None) -> str:
    """Return what names the pixels of an entry: of its label as well, where ``table`` reads it."""
    entry = shard.entries[index]
    paths = [shard.image_path(index)]
    label = shard.label_path(index)
    if table is not None and label is not None:
        paths.append(label)
    states = [path.stat() for path in paths]
    told: list[object] = [[str(path.resolve()) for path in paths], entry.view, shard.repair_sizes]
    told += [[state.st_size, state.st_mtime_ns] for state in states]
    told.append(None if table is None else hashlib.sha256(table.lut().tobytes()).hexdigest())
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
