"""Does every message end as content or as a reason, and nothing wait longer than it may?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

import server.transport.retrying_link
from common import wire
from server.transport.retrying_link import Link, paired, rest_seconds, time_to_live
from tests.support.local_grid import LocalGrid


def make_grid(nodes: int) -> LocalGrid:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(
            wire.encode_update(wire.Update(f"n{context.node_id}", ""), "float32"), reply_to=message
        )

    return LocalGrid(app, {node: {} for node in range(nodes, 0, -1)})


def tasks(grid: LocalGrid, ttl: float = 60.0) -> list[Message]:
    content = wire.encode_task(wire.Task(1, "{}", "run"), "float32")
    return [wire.make_message(content, node, wire.TRAIN, 1, ttl) for node in sorted(grid.node_configs)]


def test_every_message_ends_as_exactly_one_outcome() -> None:
    grid = make_grid(4)
    grid.faults = {
        2: lambda message, real: Error(3, "busy"),
        3: lambda message, real: None,
        4: lambda message, real: Error(77, "?"),
    }
    sent = tasks(grid)
    began = time.monotonic()
    replies = list(Link(grid, 0.3, 0.01).replies(sent))
    assert 0.3 <= time.monotonic() - began < 2
    found = dict(paired(sent, replies, 0.3))
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
    found = dict(paired(sent, list(Link(grid, 60, 0.01).replies(sent)), 60))
    assert [found[node].error for node in (1, 2)] == [
        "its answer was lost on the way",
        "it did not answer within 60 s",
    ]


def test_nobody_waits_when_all_have_answered() -> None:
    grid = make_grid(3)
    began = time.monotonic()
    assert len(list(Link(grid, 60, 0.01).replies(tasks(grid)))) == 3 and time.monotonic() - began < 5


def test_replies_are_paired_by_message_and_not_by_order_or_sender() -> None:
    grid = make_grid(5)
    sent = tasks(grid)
    replies = list(Link(grid, 1, 0.01).replies(sent))[::-1]
    for reply in replies:
        reply.metadata.__dict__["_src_node_id"] = 1  # Flower itself answers for nodes that are gone
    found = dict(paired(sent, replies, 1))
    names = {node: wire.site_of(outcome.content or RecordDict()) for node, outcome in found.items()}
    assert names == {node: f"n{node}" for node in range(1, 6)}


def test_replies_that_come_late_are_collected_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = make_grid(2)
    sent = tasks(grid)
    asked: list[str] = []
    real = grid.pull_messages

    def slow(ids: list[str]) -> list[Message]:
        asked.extend(ids)
        return real(ids) if len(asked) % 2 == 0 else []

    monkeypatch.setattr(grid, "pull_messages", slow)
    assert len(list(Link(grid, 5, 0.01).replies(sent))) == 2
    first, second = (message.metadata.message_id for message in sent)
    assert asked == [first, second, first, first]


def stuck(grid: LocalGrid, monkeypatch: pytest.MonkeyPatch, index: int) -> threading.Event:
    """Let the answer to one message hang as long as the event is not set; there is no patience either."""
    free, real = threading.Event(), grid.pull_messages

    def hanging(ids: list[str]) -> list[Message]:
        if ids == [grid.sent[index].metadata.message_id]:
            free.wait(60)
        return real(ids)

    monkeypatch.setattr(grid, "pull_messages", hanging)
    monkeypatch.setattr(server.transport.retrying_link, "PATIENCE_SECONDS", 0.05)
    return free


def test_an_answer_that_never_comes_whole_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = make_grid(3)
    monkeypatch.setattr(server.transport.retrying_link, "GRACE_SECONDS", 0.1)
    free = stuck(grid, monkeypatch, 0)
    sent, began = tasks(grid), time.monotonic()
    replies = Link(grid, 0.5, 0.01).replies(sent)
    assert [wire.site_of(next(replies).content) for _ in range(2)] == ["n2", "n3"]
    assert time.monotonic() - began < 0.5  # the others are there long before the deadline
    found = dict(paired(sent, replies, 0.5))
    assert 0.5 <= time.monotonic() - began < 5
    assert found[1].error == "its answer was lost on the way"
    free.set()


def test_an_answer_that_began_before_the_deadline_may_end_a_little_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = make_grid(2)
    free = stuck(grid, monkeypatch, 1)
    sent = tasks(grid)
    replies = Link(grid, 0.2, 0.01).replies(sent)
    assert wire.site_of(next(replies).content) == "n1"
    threading.Timer(0.5, free.set).start()
    assert wire.site_of(next(replies).content) == "n2"
    assert list(replies) == []


def test_however_many_calls_hang_the_end_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, free = make_grid(30), threading.Event()
    monkeypatch.setattr(grid, "pull_messages", lambda ids: free.wait(60) and [])
    monkeypatch.setattr(server.transport.retrying_link, "PATIENCE_SECONDS", 0.3)  # 9 s for all of them
    monkeypatch.setattr(server.transport.retrying_link, "GRACE_SECONDS", 0.3)
    sent, began = tasks(grid), time.monotonic()
    replies = list(Link(grid, 0.2, 0.01).replies(sent))
    assert time.monotonic() - began < 4
    found = dict(paired(sent, replies, 0.2))
    assert {outcome.error for outcome in found.values()} == {"its answer was lost on the way"}
    free.set()


def test_an_answer_from_between_the_last_two_looks_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, deadline = make_grid(1), 0.6
    real, looks = grid.pull_messages, list[int]()

    def loaded(ids: list[str]) -> list[Message]:  # a look takes so long that the next one is the last
        looks.append(len(looks))
        time.sleep(0.2)
        return real(ids) if len(looks) > 1 else []

    monkeypatch.setattr(grid, "pull_messages", loaded)
    sent, began = tasks(grid, time_to_live(deadline)), time.monotonic()
    replies = list(Link(grid, deadline, 0.01).replies(sent))
    assert len(looks) == 2 and time.monotonic() - began > deadline
    assert [wire.site_of(reply.content) for reply in replies] == ["n1"]
    assert time_to_live(deadline) > deadline + server.transport.retrying_link.GRACE_SECONDS


def test_answers_that_are_there_in_the_end_count_however_slow_each_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = make_grid(36)
    real = grid.pull_messages

    def slow(ids: list[str]) -> list[Message]:
        time.sleep(0.1)
        return real(ids)

    monkeypatch.setattr(grid, "pull_messages", slow)
    monkeypatch.setattr(
        server.transport.retrying_link, "GRACE_SECONDS", 2.0
    )  # for twenty of them, one after another
    replies = list(Link(grid, 0.0, 0.01).replies(tasks(grid)))
    assert sorted(str(wire.site_of(reply.content)) for reply in replies if not reply.has_error()) == sorted(
        f"n{node}" for node in range(1, 37)
    )


def test_what_cannot_be_asked_for_now_is_collected_later(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = make_grid(2)
    monkeypatch.setattr(server.transport.retrying_link, "GRACE_SECONDS", 0.5)
    free = stuck(grid, monkeypatch, 0)
    link, sent = Link(grid, 60, 0.01), tasks(grid)
    link.send(sent)
    assert [wire.site_of(reply.content) for reply in link.collect(sent, 0.0)] == ["n2"]
    free.set()
    assert [wire.site_of(reply.content) for reply in link.collect(sent[:1], 5.0)] == ["n1"]


def test_pauses_follow_the_time_of_asking_within_bounds() -> None:
    assert rest_seconds(0.2, 0.01, 60) == 0.2  # few sites
    assert rest_seconds(0.2, 0.1, 60) == pytest.approx(0.4)
    assert rest_seconds(0.2, 3.0, 60) == pytest.approx(5.0)  # a loaded machine: 12 s would lose a round
    assert rest_seconds(0.2, 3.0, 1.0) == 1.0
    assert rest_seconds(0.2, 3.0, -1.0) == 0.0


def trouble(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1/v1/runtime/pull-messages")
    return httpx.HTTPStatusError("trouble", request=request, response=httpx.Response(code, request=request))


def test_a_superlink_with_trouble_of_its_own_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = make_grid(2)
    left = {"pull_messages": 2, "get_node_ids": 1}

    def failing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: object) -> Any:
            left[name] -= 1
            if left[name] >= 0:
                raise trouble(500)
            return real(*given)

        return call

    for name in left:
        monkeypatch.setattr(grid, name, failing(name, getattr(grid, name)))
    assert Link(grid, 60).node_ids() == [1, 2]
    assert len(list(Link(grid, 60, 0.01).replies(tasks(grid)))) == 2
    assert left["pull_messages"] < 0 and left["get_node_ids"] < 0


@pytest.mark.parametrize(("code", "seconds"), [(500, 0.0), (401, 60.0)])
def test_trouble_that_lasts_and_refusals_are_raised(
    code: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = make_grid(1)

    def failing(ids: list[str]) -> list[Message]:
        raise trouble(code)

    monkeypatch.setattr(grid, "pull_messages", failing)
    monkeypatch.setattr(server.transport.retrying_link, "TROUBLE_SECONDS", seconds)
    with pytest.raises(httpx.HTTPStatusError):
        list(Link(grid, 5, 0.01).replies(tasks(grid)))


def test_an_error_of_the_grid_is_raised_where_the_answer_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = make_grid(1)

    def broken(ids: list[str]) -> list[Message]:
        raise ConnectionError("the SuperLink is gone")

    monkeypatch.setattr(grid, "pull_messages", broken)
    with pytest.raises(ConnectionError, match="is gone"):
        list(Link(grid, 5, 0.01).replies(tasks(grid)))


def test_nothing_to_send_is_nothing_to_wait_for() -> None:
    assert list(Link(make_grid(0), 60, 0.01).replies([])) == []


def test_nodes_come_in_a_fixed_order_and_waiting_ends() -> None:
    grid = make_grid(3)
    link, heard = Link(grid, 0.01), list[int]()
    assert link.wait_for_nodes(3, 60, heard.append) == [1, 2, 3] and heard == [3]
    began = time.monotonic()
    assert link.wait_for_nodes(9, 0.2, heard.append) == [1, 2, 3] and heard == [3, 3]
    assert 0.2 <= time.monotonic() - began < 2
    assert Link(make_grid(0), 0.01).wait_for_nodes(0, 0.05, heard.append) == [] and heard[-1] == 0
    assert link.registered_names() == {}
