"""Atomic writes: a file appears whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import UserError

# What the system says where a disk is full, over quota, read-only or broken.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


# How many files are being written, and whether the process ends and begins no other.
_files = threading.Condition()
_state = {"open": 0, "closed": 0}


@contextmanager
def whole_file() -> Iterator[None]:
    """Count a file as being written; after `no_more_files` none is begun, and the thread waits for the end."""
    with _files:
        _files.wait_for(lambda: not _state["closed"])
        _state["open"] += 1
    try:
        yield
    finally:
        with _files:
            _state["open"] -= 1
            _files.notify_all()


def no_more_files(seconds: float) -> bool:
    """Let no file be begun from now on; tell whether those being written were whole within ``seconds``."""
    with _files:
        _state["closed"] = 1
        return _files.wait_for(lambda: not _state["open"], seconds)


@contextmanager
def atomic_path(path: str | Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on failure it goes.

    A ``private`` file can be read by its owner only. The data are flushed to disk before the rename, so that
    a crash leaves the old file or the new one. A device (``/dev/null``) is written to and stays. Raises `UserError`
    where the folder cannot be written or the disk is full.
    """
    target = Path(path)
    with whole_file():
        yield from _as_it_is(target) if _is_device(target) else _replacing(target, private)


def _is_device(target: Path) -> bool:
    """Tell whether renaming over ``target`` would put a file in the place of a device, a pipe or a standard stream."""
    if target.parent == Path("/dev"):
        return True  # where a stream is redirected to a file, /dev/stdout looks like one
    return target.exists() and not (target.is_file() or target.is_dir())


def _as_it_is(target: Path) -> Iterator[Path]:
    try:
        yield target
    except OSError as error:
        raise UserError(f"Cannot write {target}: {error.strerror or error}; choose a file.") from error


def _replacing(target: Path, private: bool) -> Iterator[Path]:
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
