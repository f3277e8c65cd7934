"""The lock of a shard's feature caches, and the caches that go when there are too many."""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError
from common.features.store import KEEP, Key

_log = logging.getLogger(__name__)


@contextmanager
def shard_lock(cache_dir: Path, key: Key) -> Iterator[None]:
    """Hold the lock of a shard; wait where another process builds its features."""
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
        # what a killed process left half-written goes: nobody else writes while we hold the lock
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
