"""The link to the sites: messages out, replies within a deadline, and the reason where one is missing.

Flower's own blocking call polls every three seconds and says nothing about silent nodes. Here every
message ends as exactly one `Outcome`: content, or the reason why there is none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common import wire
from server.transport.retry import GRACE_SECONDS, patiently, pull

if TYPE_CHECKING:
    from flwr.app import Error, Message, RecordDict
    from flwr.serverapp import Grid

POLL_SECONDS = 0.2

MARGIN_SECONDS = GRACE_SECONDS + 10.0
"""So much longer than the deadline a message lives: Flower drops the answer together with a message whose time is
over, and the last look for answers comes after the deadline.
"""

EXPIRED = 3
"""Flower's error code for a message that outlived the deadline before its reply was there; 4 is that of a reply."""
_HALF_SENT = "objects are unavailable"
"""What Flower says under the same code of a reply whose arrays never came: who sent it was killed meanwhile."""

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
        return sorted(patiently(self.grid.get_node_ids))

    def registered_names(self) -> dict[int, str]:
        """Return the names under which nodes' keys were registered, where there are any."""
        nodes: list[Any] = list(patiently(self.grid.get_nodes))
        return {node.node_id: node.name for node in nodes if getattr(node, "name", "")}

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
