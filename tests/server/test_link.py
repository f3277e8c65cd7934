"""Does every message end as content or as a reason, and nothing wait longer than it may?"""

from __future__ import annotations

import time

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from common import wire
from server.link import Link, outcomes
from tests.support.local_grid import LocalGrid


def make_grid(nodes: int) -> LocalGrid:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(
            wire.encode_update(wire.Update(f"n{context.node_id}", ""), "float32"), reply_to=message
        )

    return LocalGrid(app, {node: {} for node in range(nodes, 0, -1)})


def tasks(grid: LocalGrid) -> list[Message]:
    content = wire.encode_task(wire.Task(1, "{}", "run"), "float32")
    return [wire.make_message(content, node, wire.TRAIN, 1, 60.0) for node in sorted(grid.node_configs)]


def test_every_message_ends_as_exactly_one_outcome() -> None:
    grid = make_grid(4)
    grid.faults = {
        2: lambda message, real: Error(3, "busy"),
        3: lambda message, real: None,
        4: lambda message, real: Error(77, "?"),
    }
    sent = tasks(grid)
    began = time.monotonic()
    replies = Link(grid, poll_seconds=0.01).exchange(sent, 0.3)
    assert 0.3 <= time.monotonic() - began < 2
    found = outcomes(sent, replies, 0.3)
    assert sorted(found) == [1, 2, 3, 4]
    assert found[1].error is None and found[1].content is not None
    assert wire.decode_update(found[1].content, 1 << 16).site == "n1"
    assert found[2].error == found[3].error and found[2].content is None
    assert str(found[3].error).startswith("it did not answer within 0 s")
    assert found[4].error == "Flower reports error code 77"
    assert {outcome.bytes_down for outcome in found.values()} == {wire.payload_bytes(sent[0].content)}


def test_an_answer_that_came_half_is_not_called_late() -> None:
    grid = make_grid(2)
    half = "Reply message objects are unavailable. The sender may not have completed the upload"
    grid.faults = {1: lambda message, real: Error(3, half), 2: lambda message, real: Error(4, "expired")}
    sent = tasks(grid)
    found = outcomes(sent, Link(grid).exchange(sent, 60), 60)
    assert [found[node].error for node in (1, 2)] == [
        "its answer was lost on the way",
        "it did not answer within 60 s",
    ]


def test_nobody_waits_when_all_have_answered() -> None:
    grid = make_grid(3)
    began = time.monotonic()
    assert len(Link(grid).exchange(tasks(grid), 60)) == 3 and time.monotonic() - began < 5


def test_replies_are_paired_by_message_and_not_by_order_or_sender() -> None:
    grid = make_grid(5)
    grid.reverse = True
    sent = tasks(grid)
    replies = Link(grid, 0.01).exchange(sent, 1)
    for reply in replies:
        reply.metadata.__dict__["_src_node_id"] = 1  # Flower itself answers for nodes that are gone
    found = outcomes(sent, replies, 1)
    names = {node: wire.site_of(outcome.content or RecordDict()) for node, outcome in found.items()}
    assert names == {node: f"n{node}" for node in range(1, 6)}


def test_replies_that_come_late_are_collected_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = make_grid(2)
    sent = tasks(grid)
    pulls: list[int] = []
    pull = grid.pull_messages

    def slow(ids: list[str]) -> list[Message]:
        pulls.append(len(ids))
        return pull(ids[:1]) if len(pulls) % 2 else []

    monkeypatch.setattr(grid, "pull_messages", slow)
    assert len(Link(grid, 0.01).exchange(sent, 5)) == 2
    assert pulls == [2, 1, 1]


def test_nothing_to_send_is_nothing_to_wait_for() -> None:
    assert Link(make_grid(0)).exchange([], 60) == []


def test_nodes_come_in_a_fixed_order_and_waiting_ends() -> None:
    grid = make_grid(3)
    link, heard = Link(grid, 0.01), list[int]()
    assert link.wait_for_nodes(3, 60, heard.append) == [1, 2, 3] and heard == [3]
    began = time.monotonic()
    assert link.wait_for_nodes(9, 0.2, heard.append) == [1, 2, 3] and heard == [3, 3]
    assert 0.2 <= time.monotonic() - began < 2
    assert Link(make_grid(0), 0.01).wait_for_nodes(0, 0.05, heard.append) == [] and heard[-1] == 0
    assert link.registered_names() == {}
