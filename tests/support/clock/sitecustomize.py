"""A wall clock that is wrong: on the path of a process, it is ahead by what the file ``TEST_CLOCK`` says, in seconds.

The file may change at any time, as a clock does that somebody sets. ``time.monotonic`` stays true.
"""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path
from types import SimpleNamespace

LOOK_SECONDS = 0.1

_file = os.environ.get("TEST_CLOCK", "")
_true_time = time.time
_seen = (0.0, -1.0)
"""The offset in seconds, and when it was read."""


def offset() -> float:
    """Return by how many seconds the clock is ahead."""
    global _seen
    now = time.monotonic()
    if now - _seen[1] > LOOK_SECONDS:
        try:
            ahead = float(Path(_file).read_text())
        except (OSError, ValueError):
            ahead = 0.0
        _seen = (ahead, now)
    return _seen[0]


class WrongDatetime(datetime.datetime):
    """Asks the wrong clock."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
        """Return the time that the clock shows."""
        return datetime.datetime.fromtimestamp(time.time(), tz)


def install() -> None:
    """Put the wrong clock in the place of Python's, and of the one that Flower looks at."""
    true_clock = SimpleNamespace(**vars(time))
    time.time = lambda: _true_time() + offset()
    time.time_ns = lambda: int(time.time() * 1e9)
    from flwr.supercore import date

    vars(date)["datetime"] = SimpleNamespace(datetime=WrongDatetime, UTC=datetime.UTC)
    from grpc import _channel

    vars(_channel)["time"] = true_clock  # it hands moments to its C core, which asks the system itself


if _file:
    install()
