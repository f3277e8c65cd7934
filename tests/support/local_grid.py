"""A Flower grid inside one process: every pushed message is answered at once by a ClientApp.

It keeps the contracts that matter to the server: random node ids, message ids set while pushing, error
replies, silent nodes, and that an answer goes with its message when that has outlived its time. No sockets, no
workers, so that a whole federation runs in a second.
"""

from __future__ import annotations

import copy
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

Answer = Message | Error | None
Fault = Callable[[Message, Callable[[Message], Message]], Answer]


def set_identity() -> None:
    """Give this process the identity without which Flower builds no message."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 42, 1


def _without_content(message: Message) -> Message:
    """Return the same message, empty: who never answers must not keep a network in memory."""
    found = copy.copy(message)
    found.__dict__["_content"] = RecordDict()
    return found


class LocalGrid(Grid):  # type: ignore[misc]
    """Nodes by id, each with its node configuration; ``faults`` replace or wrap a node's answer.

    With ``reverse`` the last message is answered first, whatever is asked for first. ``seconds`` is how far the
    clock by which messages expire is ahead.
    """

    def __init__(self, client_app: ClientApp, node_configs: dict[int, dict[str, Any]]) -> None:
        set_identity()
        self.client_app = client_app
        self.node_configs = node_configs
        self.faults: dict[int, Fault] = {}
        self.sent: list[Message] = []
        self.reverse = False
        self.seconds = 0.0
        self._replies: dict[str, Message] = {}
        self._asked: dict[str, Message] = {}

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = Context(
            run_id=42, node_id=node, node_config=self.node_configs[node], state=RecordDict(), run_config={}
        )
        return self.client_app(message, context)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            identity = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = identity
            ids.append(identity)
            self.sent.append(message)
            arrived = Message(
                copy.deepcopy(message.content),
                dst_node_id=message.metadata.dst_node_id,
                message_type=message.metadata.message_type,
                group_id=message.metadata.group_id,
                ttl=message.metadata.ttl,
            )
            arrived.metadata.__dict__["_message_id"] = identity
            self._asked[identity] = _without_content(arrived)
            fault = self.faults.get(message.metadata.dst_node_id)
            answer = fault(arrived, self._answer) if fault else self._answer(arrived)
            if isinstance(answer, Error):
                answer = Message(answer, reply_to=arrived)
            if answer is not None:
                self._replies[identity] = answer
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        last = next(reversed(self._replies), "")
        found = []
        for identity in message_ids:
            asked = self._asked.get(identity)
            if asked is not None and self._is_over(asked):
                self._replies.pop(identity, None)
                found.append(Message(Error(3, "expired"), reply_to=self._asked.pop(identity)))
            elif identity in self._replies and (identity == last or not self.reverse):
                del self._asked[identity]
                found.append(self._replies.pop(identity))
        return found

    def _is_over(self, asked: Message) -> bool:
        return time.time() + self.seconds > asked.metadata.created_at + asked.metadata.ttl

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))

    def get_node_ids(self) -> list[int]:
        return list(self.node_configs)

    def get_nodes(self) -> list[Any]:
        return []

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *arguments: Any, **options: Any) -> Message:
        raise NotImplementedError
