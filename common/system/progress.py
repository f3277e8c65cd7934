"""Progress of long work, as a line that counts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

# Called with how many are done and how many there are.
Progress = Callable[[int, int], None]

# Where nobody watches a terminal, a line is written this often: a log stays short, quick work says nothing.
PIPE_SECONDS = 10.0


def progress_line(what: str) -> Progress:
    """Return what counts on one line of a terminal, with the time left; in a pipe, on a line each ten seconds."""
    watched = sys.stderr.isatty()
    start = said = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        left = (now - start) / max(done, 1) * (total - done)
        text = f"{what} {done}/{total}, {left:.0f} s left"
        if watched:
            print(f"\r{text}  ", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif now - said >= PIPE_SECONDS:
            said = now
            print(text, file=sys.stderr, flush=True)

    return show
