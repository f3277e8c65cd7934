"""Are sites known by name, refused with a reason, and forgotten when they go?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from common import wire
from common.settings.load import load_config
from server.transport.registry import HEARING_SECONDS, SiteRegistry
from server.transport.retrying_link import Link
from tests.support.local_grid import LocalGrid

HASH = "ab" * 32


def grid_of(*answers: wire.Update | Error | None) -> LocalGrid:
    """Return a grid whose nodes 101, 102, ... greet with these answers."""
    app = ClientApp()
    by_node = {101 + i: answer for i, answer in enumerate(answers)}

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        update = by_node[context.node_id]
        assert isinstance(update, wire.Update)
        run_key = wire.decode_task(message).run_key
        return Message(wire.encode_update(replace(update, run_key=run_key), "float32"), reply_to=message)

    grid = LocalGrid(app, {node: {} for node in by_node})
    for node, answer in by_node.items():
        if not isinstance(answer, wire.Update):
            grid.faults[node] = lambda message, real, answer=answer: answer  # type: ignore[misc]
    return grid


def greeting(name: str, weights: str = HASH, **facts: Any) -> wire.Update:
    numbers = {"images": 9, "channels": 416, "grid-height": 5, "grid-width": 7}
    given = {key.replace("_", "-"): value for key, value in facts.items()}
    return wire.Update(name, weights, facts={k: v for k, v in (numbers | given).items() if v is not None})


def greet(grid: LocalGrid, server_hash: str = "", registry: SiteRegistry | None = None) -> SiteRegistry:
    found = registry or SiteRegistry(load_config({"sites.deadline-seconds": 0.2}), "run", server_hash)
    found.refresh(Link(grid, found.config.sites.deadline_seconds, 0.01), 0, lambda text: None)
    return found


def test_sites_are_known_by_the_name_they_give() -> None:
    found = greet(grid_of(greeting("b"), greeting("a", images=3)))
    assert set(found.sites) == {"a", "b"} and not found.refused
    info = found.sites["a"]
    assert (info.node_id, info.images, info.channels, info.grid, info.weights_hash) == (
        102,
        3,
        416,
        (5, 7),
        HASH,
    )


@pytest.mark.parametrize(
    ("answer", "label", "words"),
    [
        (greeting("b", images=None), "b", "its greeting is incomplete (images is None)"),
        (greeting("b", images="many"), "b", "its greeting is incomplete (images is many)"),
        (greeting("b", images=float("inf")), "b", "its greeting is incomplete (images is inf)"),
        (greeting("b", images=0), "b", "its greeting is incomplete (images is 0)"),
        (greeting("b", grid_width=-1), "b", "its greeting is incomplete (grid-width is -1)"),
        (greeting("b", error="no disk"), "b", "no disk"),
        (greeting("../b"), "node-102", "it calls itself '../b'"),
        (greeting("b/head"), "node-102", "it calls itself 'b/head'"),
        (greeting(""), "node-102", "it calls itself ''"),
        (greeting("a"), "a (node 102)", "another node already calls itself a"),
        (Error(8, "gone"), "node-102", "its client process died"),
        (None, "node-102", "it did not answer within"),
    ],
)
def test_a_site_that_cannot_take_part_is_refused_and_the_others_stay(
    answer: wire.Update | Error | None, label: str, words: str
) -> None:
    found = greet(grid_of(greeting("a"), answer, greeting("c")))
    assert set(found.sites) == {"a", "c"}
    assert list(found.refused) == [label] and words in found.refused[label], found.refused


def test_another_wire_version_is_refused_by_name() -> None:
    found = greet(grid_of(wire.Update("old", HASH, wire_version=0)))
    assert found.refused["old"].startswith("wire version 0, expected 3")


def test_the_common_backbone_counts_and_the_servers_own_counts_more() -> None:
    other = "00" * 32
    sites = [greeting("a"), greeting("b", other), greeting("c")]
    found = greet(grid_of(*sites))
    assert set(found.sites) == {"a", "c"}
    assert found.refused["b"].startswith(
        "its backbone weights (000000000000) are not the common ones (abababababab)"
    )
    assert set(greet(grid_of(*sites), server_hash=other).sites) == {"b"}


def test_a_tie_does_not_depend_on_who_comes_first() -> None:
    pair = [greeting("a", "11" * 32), greeting("b", "00" * 32)]
    assert set(greet(grid_of(*pair)).sites) == set(greet(grid_of(*pair[::-1])).sites) == {"b"}


def test_only_new_nodes_are_greeted_and_those_that_went_are_forgotten() -> None:
    grid = grid_of(greeting("a"), greeting("b"))
    late = grid.node_configs.pop(102)
    found = greet(grid)
    assert set(found.sites) == {"a"}
    grid.node_configs[102] = late
    greet(grid, registry=found)
    assert set(found.sites) == {"a", "b"}
    assert [m.metadata.dst_node_id for m in grid.sent] == [101, 102]
    del grid.node_configs[101]
    greet(grid, registry=found)
    assert set(found.sites) == {"b"} and len(grid.sent) == 2


def test_a_registered_name_wins_over_the_one_that_a_site_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Link, "registered_names", lambda self: {101: "clinic"})
    assert set(greet(grid_of(greeting("somebody-else"))).sites) == {"clinic"}


def look(grid: LocalGrid, found: SiteRegistry) -> list[str]:
    """Refresh as in the middle of a run; return what is said."""
    heard: list[str] = []
    found.refresh(Link(grid, found.config.sites.deadline_seconds, 0.01), 5, heard.append, wait=False)
    return heard


def test_a_newcomer_that_does_not_answer_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    grid = grid_of(greeting("a"), None)
    late = grid.node_configs.pop(102)
    found = greet(grid)
    grid.node_configs[102] = late
    for _ in range(3):
        look(grid, found)
        assert set(found.sites) == {"a"} and not found.refused
    assert len(grid.sent) == 2  # asked once
    now[0] += 1  # the deadline is over
    assert look(grid, found) == ["site node-102 is refused: it did not answer within 0 s"]
    for _ in range(2):
        assert look(grid, found) == []  # said once
    assert len(grid.sent) == 2 and found.refused  # its answer may still come
    now[0] += 2 * 0.2 + HEARING_SECONDS
    for _ in range(2):
        assert look(grid, found) == []
    assert len(grid.sent) == 3 and found.refused  # asked again


def test_a_newcomer_is_heard_after_a_round_that_lasted_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    grid = grid_of(greeting("a"), greeting("slow"))
    late = grid.node_configs.pop(102)
    found = greet(grid)
    grid.node_configs[102] = late
    with monkeypatch.context() as busy:
        busy.setattr(grid, "pull_messages", lambda ids: [])
        look(grid, found)
        now[0] += 0.25  # the deadline is 0.2 s, and a round that waited for a silent site lasted longer
        grid.seconds += 0.25
        look(grid, found)
        assert set(found.sites) == {"a"} and found.refused["node-102"].startswith("it did not answer")
    assert look(grid, found) == ["site slow takes part from now on"]
    assert not found.refused and len(grid.sent) == 2


def test_an_answer_that_comes_late_counts_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of(greeting("a"), greeting("slow"))
    late = grid.node_configs.pop(102)
    found = greet(grid)
    grid.node_configs[102] = late
    pull = grid.pull_messages
    monkeypatch.setattr(grid, "pull_messages", lambda ids: [])
    assert look(grid, found) == ["greeting 1 site(s); a site caches its features now if it has none yet"]
    monkeypatch.setattr(grid, "pull_messages", pull)
    found.config = load_config({"sites.deadline-seconds": 60})
    assert look(grid, found) == ["site slow takes part from now on"]
    assert len(grid.sent) == 2
    del grid.node_configs[102]
    assert look(grid, found) == ["site slow is not connected any more"]


def test_a_restarted_site_gets_its_name_back_when_the_old_node_is_gone() -> None:
    grid = grid_of(greeting("a"), greeting("a"), greeting("b"))
    found = greet(grid)
    (label,) = found.refused
    assert label == "a (node 102)" and found.sites["a"].node_id == 101
    asked = len(grid.sent)
    assert look(grid, found) == [] and len(grid.sent) == asked  # not asked while the name is taken
    assert found.refused
    del grid.node_configs[101]
    assert look(grid, found) == [
        "site a is not connected any more",
        "site a takes part from now on",
    ]
    assert found.sites["a"].node_id == 102 and not found.refused


def test_what_is_refused_may_be_mended_and_is_said_once() -> None:
    grid = grid_of(greeting("a"), greeting("b", error="no disk"))
    found = greet(grid)
    assert look(grid, found) == []
    grid.faults[102] = lambda message, real: Message(
        wire.encode_update(replace(greeting("b"), run_key="run"), "float32"), reply_to=message
    )
    assert look(grid, found) == ["site b takes part from now on"]


def test_what_a_node_says_of_itself_is_kept_short_and_on_one_line() -> None:
    strange = "b\n" * 5000
    nodes = [
        greeting("a", error="no\ndisk" * 999),
        wire.Update(strange, HASH, wire_version=0),
        greeting(strange),
        wire.Update("c", HASH, wire_version="9\n" * 999),  # type: ignore[arg-type]
    ]
    found = greet(grid_of(*nodes))
    assert list(found.refused) == ["a", "node-102", "node-103", "c"] and not found.sites
    assert all(len(reason) <= 400 and reason.isprintable() for reason in found.refused.values())
    assert found.refused["a"].startswith("no diskno disk")
    assert found.refused["node-102"].startswith("wire version 0, expected 3")


def test_a_greeting_brings_no_arrays() -> None:
    heavy = wire.Update("a", HASH, groups={"head": {"w": np.zeros(9)}}, facts=greeting("a").facts)
    assert greet(grid_of(heavy)).refused == {"a": "unexpected group 'head'"}
