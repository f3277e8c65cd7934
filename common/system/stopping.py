"""Stops a process in order: the current files become whole, what it started ends too, and its last words are said.

SIGINT (Ctrl-C) and SIGTERM are noticed by a thread of their own, whatever the main thread waits for meanwhile.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.system.atomic import no_more_files

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A checkpoint takes below a second; a disk that takes longer must not hold up the end, and half a file is none.
_FILE_SECONDS = 4.0
# Ray's processes end within milliseconds of SIGTERM; those that do not are killed.
_CHILD_SECONDS = 2.0
# Whatever happens, the process is gone so many seconds after the signal.
_END_SECONDS = 9.0
_LOOK_SECONDS = 0.05
_PARENT_LOOK_SECONDS = 0.5


@contextmanager
def stopping_in_order(last_words: Callable[[], str]) -> Iterator[None]:
    """Let SIGINT and SIGTERM end this process by `stop` while the block runs; to be entered by the main thread.

    ``last_words`` are asked for when everything else is over. Exit code: 128 and the signal's number.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    asked = threading.Event()

    def wait() -> None:
        # other handled signals write here as well; the pipe's end is the end of the block
        while found := os.read(reading, 1):
            if found[0] in _SIGNALS:
                asked.set()
                stop(found[0], last_words)

    handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    # the interpreter writes the number here at once; a handler would wait until the main thread runs Python again
    earlier = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=wait, daemon=True, name="stopping")
    watcher.start()
    try:
        yield
    finally:
        if asked.is_set():  # Ray raises SystemExit at SIGTERM: the end is the watcher's nevertheless
            watcher.join()
        signal.set_wakeup_fd(earlier)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(writing)
        watcher.join()
        os.close(reading)


def stop(number: int, last_words: Callable[[], str]) -> None:
    """End this process and all that descends from it, within ten seconds."""
    alarm = threading.Timer(_END_SECONDS, os._exit, (128 + number,))
    alarm.daemon = True
    alarm.start()
    _say(f"\n{signal.Signals(number).name}: stopping after the current file")
    no_more_files(_FILE_SECONDS)
    # Flower and Ray report each process that is ended below as a fault, with a traceback; so would their threads
    logging.disable()
    threading.excepthook = lambda _: None
    end_descendants(_CHILD_SECONDS)
    with suppress(Exception):
        _say(last_words())
    os._exit(128 + number)


def _say(text: str) -> None:
    # not by print: another thread may hold the stream's lock for good
    with suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{text}\n".encode())


def descendants(root: int) -> list[int]:
    """Return the ids of all processes that descend from ``root``; none where the system has no ``/proc``."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            # the name, in brackets, may hold anything
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found, left = [], [root]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def end_descendants(seconds: float) -> None:
    """Ask all processes below this one to end, and kill those that still run after ``seconds``."""
    left = descendants(os.getpid())
    for how in (signal.SIGTERM, signal.SIGKILL):
        for child in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, how)
        until = time.monotonic() + seconds
        while how is signal.SIGTERM and (left := [child for child in left if _runs(child)]):
            if time.monotonic() >= until:
                break
            time.sleep(_LOOK_SECONDS)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def end_with_parent(parent: int) -> None:
    """Let this process end as soon as ``parent``, which started it, is gone; Ctrl-C is the parent's to handle."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_LOOK_SECONDS)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=look, daemon=True, name="parent").start()
