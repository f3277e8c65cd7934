"""How does the server talk to its sites within a deadline, and learn who did not answer and why?

Flower's own blocking call polls every three seconds and says nothing about silent nodes. Here every
message ends as exactly one `Outcome`: content, or the reason why there is none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common import wire
from server.transport.polling import GRACE_SECONDS, patiently, pull

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


def _words(error: Error, late: str) -> str:
    if error.code in (EXPIRED, EXPIRED + 1):
        return "its answer was lost on the way" if _HALF_SENT in (error.reason or "") else late
    return _REASONS.get(error.code, f"Flower reports error code {error.code}")


def outcomes(
    sent: Iterable[Message], replies: Iterable[Message], deadline_seconds: float
) -> dict[int, Outcome]:
    """Return what came of each message, by node, in the order in which they were sent (see `paired`)."""
    messages = list(sent)
    found = dict(paired(messages, replies, deadline_seconds))
    return {message.metadata.dst_node_id: found[message.metadata.dst_node_id] for message in messages}


def time_to_live(deadline_seconds: float) -> float:
    """Return for how many seconds a message with this deadline, and with it its answer, has to be kept."""
    return deadline_seconds + MARGIN_SECONDS


class Link:
    """Messages to sites and back, on top of Flower's grid."""

    def __init__(self, grid: Grid, poll_seconds: float = POLL_SECONDS) -> None:
        self.grid = grid
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

    def exchange(self, messages: Iterable[Message], deadline_seconds: float) -> list[Message]:
        """Send messages and return the replies that came before the deadline."""
        return list(self.replies(messages, deadline_seconds))

    def replies(self, messages: Iterable[Message], deadline_seconds: float) -> Iterator[Message]:
        """Send messages now, and yield their replies as they come, until the deadline (see `pull`)."""
        end = time.monotonic() + deadline_seconds
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
