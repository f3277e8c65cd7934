"""Polling for replies: each is asked for alone, so that a broken one keeps nobody else waiting.

A SuperLink hands out an answer as soon as its site began to send it; Flower then asks for the missing parts,
up to three minutes after the site's last word, and gives nothing back meanwhile. So every answer is asked for
alone, in a thread of its own that the round can leave behind.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import httpx

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

log = logging.getLogger(__name__)

_T = TypeVar("_T")

PATIENCE_SECONDS = 2.0
"""For so long an answer that is on its way has the server's attention alone; after it others are asked for too."""

GRACE_SECONDS = 5.0
"""An answer that began to come before the deadline may end so much later."""

_PAUSE_SHARE = 4.0
"""Pauses are so many times as long as asking in vain took: many sites are asked less often."""

_LONGEST_PAUSE_SECONDS = 2.0
"""What such a pause may add to the time of asking: else a loaded machine would hardly ask at all."""

TROUBLE_SECONDS = 60.0
"""For so long a SuperLink that answers every call with an error of its own (a locked database) is asked again."""


def patiently(call: Callable[[], _T]) -> _T:
    """Return what a call to the SuperLink returns; where that has trouble of its own, ask again for a while.

    Flower does so itself where nobody answers, but not where the answer is an error within the server.
    """
    end, pause = time.monotonic() + TROUBLE_SECONDS, 0.2
    while True:
        try:
            return call()
        except httpx.HTTPStatusError as error:
            if error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR or time.monotonic() >= end:
                raise
            log.warning("the SuperLink has trouble (%d); asking again", error.response.status_code)
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


class _Pull(threading.Thread):
    """One call for one answer; a daemon, because a process must not wait at its end for one left behind."""

    def __init__(self, grid: Grid, identity: str) -> None:
        super().__init__(daemon=True, name=f"pull-{identity[:8]}")
        self._grid, self._identity = grid, identity
        self._found: list[Message] = []
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._found = patiently(lambda: list(self._grid.pull_messages([self._identity])))
        except Exception as error:  # raised again in the thread that wanted the answer
            self._error = error

    def take(self, seconds: float) -> list[Message] | None:
        """Return what came, perhaps nothing; None while the call goes on after ``seconds``."""
        self.join(max(seconds, 0.0))
        if self.is_alive():
            return None
        if self._error is not None:
            raise self._error
        found, self._found = self._found, []
        return found


def rest_seconds(pause: float, vain: float, left: float) -> float:
    """Return how long to rest after ``vain`` seconds of asking in vain, when ``left`` are left until the end."""
    return max(0.0, min(max(pause, min(_PAUSE_SHARE * vain, vain + _LONGEST_PAUSE_SECONDS)), left))


def pull(
    grid: Grid,
    identities: Iterable[str],
    end: float,
    pause: float,
    begun: dict[str, _Pull] | None = None,
) -> Iterator[tuple[str, Message | None]]:
    """Yield messages' ids with their answers, as they come, until ``time.monotonic()`` is past ``end``.

    None stands for an answer that began to come and was not whole in time; what never began is not among them.
    All are asked for at least once. Between two times of asking there are at least ``pause`` seconds. Answers
    are in memory one after another: the next one is fetched when the caller comes back for it. Calls that hang
    (the SuperLink is away) hold up the end by twice `GRACE_SECONDS` at most, however many they are.

    ``begun`` takes up the calls that are left behind, by id, and those that it has go on: whoever asks for the
    same answers later needs it, because a call that comes through at last takes its answer along.
    """
    begun = {} if begun is None else begun
    waiting: dict[str, _Pull | None] = {identity: begun.pop(identity, None) for identity in identities}
    while waiting:
        last, vain = time.monotonic() >= end, 0.0
        until = max(time.monotonic(), end) + GRACE_SECONDS
        for identity, going in list(waiting.items()):
            began = time.monotonic()
            call = going or _Pull(grid, identity)
            found = call.take(0.0 if going else min(PATIENCE_SECONDS, until - began))
            waiting[identity] = call if found is None else None
            if found:
                del waiting[identity]
                yield identity, found[0]
            elif found is not None:
                vain += time.monotonic() - began
        if last:
            break
        if waiting:
            time.sleep(rest_seconds(pause, vain, end - time.monotonic()))
    until = time.monotonic() + GRACE_SECONDS  # those that were asked for last have only just begun
    for identity, left in waiting.items():
        if left is not None:
            found = left.take(until - time.monotonic())
            if found is None:
                begun[identity] = left
            if found != []:
                yield identity, found[0] if found else None
