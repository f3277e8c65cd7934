"""How does the server talk to its sites within a deadline, and learn who did not answer and why?

Flower's own blocking call polls every three seconds and says nothing about silent nodes. Here every
message ends as exactly one `Outcome`: content, or the reason why there is none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common import wire

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid

POLL_SECONDS = 0.2

# Flower's error codes, said in words that fit into a log line
_REASONS = {
    1: "its client application could not be loaded",
    2: "its client application raised an error",
    3: "it was still busy with earlier work",
    4: "its reply was lost",
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


def outcomes(
    sent: Iterable[Message], replies: Iterable[Message], deadline_seconds: float
) -> dict[int, Outcome]:
    """Pair every sent message with its reply, by node; a silent node gets a reason as well.

    For some errors Flower names itself as the sender, so replies are paired by message id.
    """
    answered = {reply.metadata.reply_to_message_id: reply for reply in replies}
    found: dict[int, Outcome] = {}
    for message in sent:
        down = wire.payload_bytes(message.content)
        reply = answered.get(message.metadata.message_id)
        if reply is None:
            outcome = Outcome(None, f"it did not answer within {deadline_seconds:.0f} s", down)
        elif reply.has_error():
            code = reply.error.code
            outcome = Outcome(None, _REASONS.get(code, f"Flower reports error code {code}"), down)
        else:
            outcome = Outcome(reply.content, None, down)
        found[message.metadata.dst_node_id] = outcome
    return found


class Link:
    """Messages to sites and back, on top of Flower's grid."""

    def __init__(self, grid: Grid, poll_seconds: float = POLL_SECONDS) -> None:
        self.grid = grid
        self.poll_seconds = poll_seconds

    def node_ids(self) -> list[int]:
        """Return the nodes that are connected now, in a fixed order."""
        return sorted(self.grid.get_node_ids())

    def registered_names(self) -> dict[int, str]:
        """Return the names under which nodes' keys were registered, where there are any."""
        nodes: list[Any] = list(self.grid.get_nodes())
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

    def exchange(
        self,
        messages: Iterable[Message],
        deadline_seconds: float,
        on_reply: Callable[[Message], None] = lambda reply: None,
    ) -> list[Message]:
        """Send messages and return the replies that came before the deadline."""
        end = time.monotonic() + deadline_seconds
        sent = list(messages)
        self.grid.push_messages(sent)
        waiting = {message.metadata.message_id for message in sent}
        replies: list[Message] = []
        while waiting:
            for reply in self.grid.pull_messages(list(waiting)):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
                on_reply(reply)
            if time.monotonic() >= end:
                break
            if waiting:
                time.sleep(self.poll_seconds)
        return replies
