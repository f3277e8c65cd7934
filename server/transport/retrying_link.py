"""The link to the sites: messages out, replies asked for again until a deadline, and the reason where one is missing.

Flower's own blocking call polls every three seconds and says nothing about silent nodes. Here every message ends as
exactly one `Outcome`: content, or the reason why there is none. A SuperLink hands out an answer as soon as its site
began to send it; Flower then asks for the missing parts, up to three minutes after the site's last word, and gives
nothing back meanwhile. So every answer is asked for alone, in a thread of its own that the round can leave behind.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from common import wire

if TYPE_CHECKING:
    from flwr.app import Error, Message, RecordDict
    from flwr.serverapp import Grid


log = logging.getLogger(__name__)

_T = TypeVar("_T")

# For so long an answer that is on its way has the server's attention alone; after it others are asked for too.
PATIENCE_SECONDS = 2.0

# An answer that began to come before the deadline may end so much later.
GRACE_SECONDS = 5.0

# Pauses are so many times as long as asking in vain took: many sites are asked less often.
_PAUSE_SHARE = 4.0

# What such a pause may add to the time of asking: else a loaded machine would hardly ask at all.
_LONGEST_PAUSE_SECONDS = 2.0

# For so long a SuperLink that answers every call with an error of its own (a locked database) is asked again.
TROUBLE_SECONDS = 60.0


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
        # a server that restarts is not helped by more questions
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
        # a large answer must not stay in memory with the thread
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
            # a call that hung before is only looked at: it has had its time
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


# Seconds between two looks for answers: short beside any training, long beside a call.
POLL_SECONDS = 0.2

# So much longer than the deadline a message lives: Flower drops the answer together with a message whose time is over,
# and the last look for answers comes after the deadline.
MARGIN_SECONDS = GRACE_SECONDS + 10.0

# Flower's error code for a message that outlived the deadline before its reply was there; 4 is that of a reply.
EXPIRED = 3

# What Flower says under the same code of a reply whose arrays never came: who sent it was killed meanwhile.
_HALF_SENT = "objects are unavailable"

# the other codes, said in words that fit into a log line
_REASONS = {
    1: "its client application could not be loaded",
    2: "its client application raised an error",
    5: "it went away",
    6: "a precondition of its client application failed",
    7: "it refused the application's code",
    8: "its client process died",
}


@dataclass(frozen=True)
class Outcome:
    """What came of one message: ``content``, or ``error`` in words."""

    content: RecordDict | None
    error: str | None
    bytes_down: int
    silent: bool = False


def paired(
    sent: Iterable[Message], replies: Iterable[Message], deadline_seconds: float
) -> Iterator[tuple[int, Outcome]]:
    """Pair every message that was sent with its reply, as replies come; silent nodes get a reason in the end.

    For some errors Flower names itself as the sender, so replies are paired by message id.
    """
    waiting = {message.metadata.message_id: message for message in sent}
    late = f"it did not answer within {deadline_seconds:.0f} s"
    for reply in replies:
        message = waiting.pop(reply.metadata.reply_to_message_id, None)
        if message is None:
            continue
        down, content, error = wire.payload_bytes(message.content), None, None
        if reply.has_error():
            error = _words(reply.error, late)
        else:
            content = reply.content
        del reply  # a large one goes before the next one comes
        yield message.metadata.dst_node_id, Outcome(content, error, down)
        del content
    for message in waiting.values():
        down = wire.payload_bytes(message.content)
        yield message.metadata.dst_node_id, Outcome(None, late, down, silent=True)


def arrived(reply: Message) -> tuple[int, Outcome]:
    """Return the sender of a reply and what it says; who sent the message before it knows its size."""
    error = _words(reply.error, "it did not answer in time") if reply.has_error() else None
    return reply.metadata.src_node_id, Outcome(None if error else reply.content, error, 0)


def _words(error: Error, late: str) -> str:
    if error.code in (EXPIRED, EXPIRED + 1):
        return "its answer was lost on the way" if _HALF_SENT in (error.reason or "") else late
    return _REASONS.get(error.code, f"Flower reports error code {error.code}")


def time_to_live(deadline_seconds: float) -> float:
    """Return for how many seconds a message with this deadline, and with it its answer, has to be kept."""
    return deadline_seconds + MARGIN_SECONDS


class Link:
    """Messages to sites and back, on top of Flower's grid; a site has ``deadline_seconds`` to answer each."""

    def __init__(self, grid: Grid, deadline_seconds: float, poll_seconds: float = POLL_SECONDS) -> None:
        self.grid = grid
        self.deadline_seconds = deadline_seconds
        self.poll_seconds = poll_seconds
        self._begun: dict[str, Any] = {}
        """Calls for answers to be collected that were left behind, by message id (see `pull`)."""

    def node_ids(self) -> list[int]:
        """Return the nodes that are connected now, in a fixed order."""
        # Flower promises no order
        return sorted(patiently(self.grid.get_node_ids))

    def registered_names(self) -> dict[int, str]:
        """Return the names under which nodes' keys were registered, where there are any."""
        nodes: list[Any] = list(patiently(self.grid.get_nodes))
        return {node.node_id: node.name for node in nodes if getattr(node, "name", "")}

    def registered_keys(self) -> dict[int, str]:
        """Return the hashes of nodes' public keys, where the SuperLink tells them."""
        nodes: list[Any] = list(patiently(self.grid.get_nodes))
        keys = {node.node_id: bytes(getattr(node, "public_key", b"") or b"") for node in nodes}
        return {node: hashlib.sha256(key.strip()).hexdigest() for node, key in keys.items() if key.strip()}

    def wait_for_nodes(self, count: int, seconds: float, notice: Callable[[int], None]) -> list[int]:
        """Wait until ``count`` nodes are connected or time is up; ``notice`` hears how many there are."""
        end, seen = time.monotonic() + seconds, -1
        while True:
            nodes = self.node_ids()
            if len(nodes) != seen:
                seen = len(nodes)
                notice(seen)
            if seen >= max(count, 1) or time.monotonic() >= end:
                return nodes
            time.sleep(self.poll_seconds)

    def address(
        self, content: RecordDict, node: int, action: str, number: int, deadline_seconds: float | None = None
    ) -> Message:
        """Return a message that lives as long as its answer may take: the link's deadline, or a longer one."""
        deadline = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        return wire.make_message(content, node, action, number, time_to_live(deadline))

    def outcomes(self, messages: Iterable[Message]) -> Iterator[tuple[int, Outcome]]:
        """Send messages now, and yield what came of each by node, as replies come; silent nodes come last."""
        sent = list(messages)
        return paired(sent, self.replies(sent), self.deadline_seconds)

    def replies(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Send messages now, and yield their replies as they come, until the deadline (see `pull`)."""
        end = time.monotonic() + self.deadline_seconds
        sent = list(messages)
        self.send(sent)
        return self._answers(sent, end)

    def send(self, messages: list[Message]) -> None:
        """Send messages and wait for nothing (see `collect`)."""
        self.grid.push_messages(messages)

    def collect(self, sent: list[Message], seconds: float) -> Iterator[Message]:
        """Yield the replies to messages of `send` that are there, or come within ``seconds``.

        What is on its way, or cannot be asked for at the moment, may be collected later.
        """
        end = time.monotonic() + seconds
        by_id = {message.metadata.message_id: message for message in sent}
        for _, answer in pull(self.grid, by_id, end, self.poll_seconds, self._begun):
            if answer is not None:
                yield answer

    def _answers(self, sent: list[Message], end: float) -> Iterator[Message]:
        by_id = {message.metadata.message_id: message for message in sent}
        for identity, answer in pull(self.grid, by_id, end, self.poll_seconds):
            yield answer or wire.lost_reply(by_id[identity], _HALF_SENT)
