"""Atomic writes: a file appears whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import UserError

# What the system says where a disk is full, over quota, read-only or broken.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


@contextmanager
def atomic_path(path: str | Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on failure it goes.

    A ``private`` file can be read by its owner only. The data are flushed to disk before the rename, so that
    a crash leaves the old file or the new one. Raises `UserError` where the folder cannot be written or the
    disk is full.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise UserError(
            f"Cannot write {target}: {error.strerror or error}; choose a folder that you may write to."
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        if not private:
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp makes files private; results are not
        temporary.replace(target)
        _flush_name(target.parent)
    except OSError as error:
        raise UserError(
            f"Cannot write {target}: {error.strerror or error}; free some space or choose another folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _flush_name(folder: Path) -> None:
    """Make a rename survive a power cut; what cannot do that is left as it is."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step (see `atomic_path`)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def atomic_write_bytes(path: str | Path, data: bytes, *, private: bool = False) -> None:
    """Write ``data`` to ``path`` in one step (see `atomic_path`)."""
    with atomic_path(path, private=private) as temporary:
        temporary.write_bytes(data)
