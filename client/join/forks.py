"""Child processes by fork: starts them, reads how they ended, and ends them.

A forked child shares the memory of its parent, so that what the parent has imported costs the child nothing.
In return the parent has to be alone with itself: no other threads, no CUDA.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable

_log = logging.getLogger(__name__)

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)  # what service managers and terminals send
_LOOK_SECONDS = 0.02  # children end within milliseconds of SIGTERM, so that a stop is not felt


def fork(work: Callable[[], None]) -> int:
    """Run ``work`` in a child and return the child's id; the child never comes back into the caller's code.

    The child meets signals as a fresh process does, and ends as ``work`` ends: with the code of a
    `SystemExit`, with 1 after any other exception (which is logged), else with 0.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # a signal that came between fork and reset would go to the parent's handler and be lost for the child
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
        return child
    code = 1
    try:
        for number in STOPPING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # nothing may climb into the parent's code, which would run twice from there
        _log.exception("process %d failed", os.getpid())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(child: int) -> int | None:
    """Return how a child ended (below 0: by that signal), once; None while it runs."""
    ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def end(children: Iterable[int], seconds: float) -> None:
    """Ask children to stop, and kill those that still run after ``seconds``."""
    left = set(children)
    for how in (signal.SIGTERM, signal.SIGKILL):
        for child in left:
            os.kill(child, how)  # its id cannot have gone to another process before it is waited for
        until = time.monotonic() + seconds
        while left and (how is signal.SIGKILL or time.monotonic() < until):
            left -= {child for child in left if exit_code(child) is not None}
            if left:
                time.sleep(_LOOK_SECONDS)
