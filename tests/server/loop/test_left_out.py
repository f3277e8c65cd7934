"""Rounds that do not count, merges that one reply breaks, and sites that are left out until they are asked back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message

from common import wire
from common.errors import UncountedRounds, report_user_errors
from server.loop.left_out import LEFT_OUT_FILE, MOST_REFUSALS, LeftOut
from server.loop.run import run
from server.run_dir import append_metrics, read_metrics
from server.tasks.unsupervised import UnsupervisedTraining
from server.transport.exchange import Replies
from tests.support.federation import local_grid, metrics, tiny_config
from tests.support.local_grid import Answer, LocalGrid

SITES = 4
Real = Callable[[Message], Message]
QUICK: dict[str, Any] = {"preset": "fuss-clean", "eval__shard": "", "local__steps": 1, "model__stages": "1,3"}


def node_of(grid: LocalGrid, site: int) -> int:
    return next(node for node, given in grid.node_configs.items() if given["partition-id"] == site)


def wrong(reply: Message) -> Message:
    reply.content.config_records["facts"]["fact.images"] = 10**6
    return reply


def test_a_site_that_is_refused_three_times_running_is_left_out_until_it_is_asked_back(
    tmp_path: Path, scenes: Path
) -> None:
    """Round 3 is an absence, which does not count; before round 7 somebody takes the site out of the file."""
    grid, asked = local_grid(SITES), []
    file = tmp_path / "run" / LEFT_OUT_FILE

    def fault(message: Message, real: Real) -> Answer:
        number = int(message.metadata.group_id or 0)
        if message.metadata.message_type != wire.TRAIN:
            return real(message)
        asked.append(number)
        if number == 3:
            return None
        return wrong(real(message)) if number < 5 else real(message)

    def other(message: Message, real: Real) -> Answer:
        if message.metadata.message_type == wire.TRAIN and message.metadata.group_id == "6":
            found = json.loads(file.read_text())
            assert found.pop("site-2")["rounds"] == MOST_REFUSALS
            file.write_text(json.dumps(found))
        return real(message)

    grid.faults = {node_of(grid, 2): fault, node_of(grid, 0): other}
    settings = QUICK | {"rounds": 8, "sites__deadline_seconds": 1.0}
    run_dir = run(grid, tiny_config(scenes, tmp_path / "run", SITES, **settings))
    assert asked == [1, 2, 3, 4, 7, 8]
    found = metrics(run_dir)
    assert "take it out of left-out.json to ask it back" in found[4]["quarantined"]["site-2"]
    assert ["site-2" in line["sites"] for line in found] == [False] * 6 + [True] * 2
    assert "site site-2 takes part from now on" in (run_dir / "log.txt").read_text()
    assert json.loads(file.read_text()) == {}


def test_what_is_left_out_outlives_a_resume_but_not_a_step_back(tmp_path: Path) -> None:
    file = tmp_path / LEFT_OUT_FILE
    told = LeftOut(file)
    for number in (4, 5, 6):
        told.note(number, Replies(quarantined={"a": "because"}, refused={"a"}))
    assert "because" in LeftOut(file, 7).reasons()["a"]
    assert LeftOut(file, 6).reasons() == {}
    file.write_text("{")
    assert LeftOut(file, 7).reasons() == {}
    assert "because" in told.reasons()["a"]  # a slip of the editor asks nobody back


def test_a_reply_that_breaks_the_merge_is_left_out_and_the_others_merge(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows how a reply passed all checks: what matters is that it costs nobody but its sender."""
    absent = local_grid(SITES)
    del absent.node_configs[node_of(absent, 2)]
    expected = run(absent, tiny_config(scenes, tmp_path / "without", SITES - 1, **QUICK))
    whole = UnsupervisedTraining.merge

    def merge(self: Any, state: Any, updates: Mapping[str, wire.Update], number: int) -> Any:
        if "site-2" not in updates:
            return whole(self, state, updates, number)
        if number == 1:
            raise ZeroDivisionError("whatever")
        if number == 2 and len(updates) > 1:  # alone it does no harm
            raise ValueError("only together")
        found = whole(self, state, updates, number)
        if number == 3:
            found.head["linear.bias"][0] = np.nan
        return found

    monkeypatch.setattr(UnsupervisedTraining, "merge", merge)
    found = run(local_grid(SITES), tiny_config(scenes, tmp_path / "with", SITES, **QUICK))
    for with_it, without in zip(metrics(found), metrics(expected), strict=True):
        assert with_it["checkpoint_sha256"] == without["checkpoint_sha256"]
        assert list(with_it["quarantined"]) == ["site-2"] and with_it["counted"]
    words = [line["quarantined"]["site-2"] for line in metrics(found)]
    assert "whatever" in words[0] and "without it" in words[1] and "NaN" in words[2]


def test_a_merge_that_fails_whoever_is_left_out_costs_the_round(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = UnsupervisedTraining.merge

    def merge(self: Any, state: Any, updates: Mapping[str, wire.Update], number: int) -> Any:
        if number == 2:
            raise RuntimeError("our own mistake")
        return whole(self, state, updates, number)

    monkeypatch.setattr(UnsupervisedTraining, "merge", merge)
    found = metrics(run(local_grid(SITES), tiny_config(scenes, tmp_path / "run", SITES, **QUICK)))
    assert [line["counted"] for line in found] == [True, False, True]
    assert not any(line["quarantined"] for line in found)


@pytest.mark.parametrize(
    "rule",
    [
        {"aggregation__rule": "krum"},
        {"aggregation__rule": "multi-krum"},
        {"aggregation__rule": "multi-krum", "aggregation__keep": 3},
    ],
    ids=["krum", "multi-krum", "multi-krum that keeps three"],
)
def test_a_rule_with_too_few_answers_ends_no_run(tmp_path: Path, scenes: Path, rule: dict[str, Any]) -> None:
    """Three of four answer in round 1 and two from then on: rounds that do not count, four of them, and no end."""
    grid = local_grid(SITES)

    def dead(message: Message, real: Real) -> Answer:
        return real(message) if message.metadata.message_type != wire.TRAIN else Error(code=0, reason="gone")

    def dies(message: Message, real: Real) -> Answer:
        return dead(message, real) if message.metadata.group_id != "1" else real(message)

    grid.faults = {node_of(grid, 2): dead, node_of(grid, 3): dies}
    with pytest.raises(UncountedRounds, match="last 4 rounds of 5 did not count"):
        run(grid, tiny_config(scenes, tmp_path / "run", SITES, rounds=5, **(QUICK | rule)))
    assert [line["counted"] for line in metrics(tmp_path / "run")] == [True] + [False] * 4
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "round 2 does not count: " in log and "2 answered" in log
    assert "last 4 rounds of 5 did not count" in log.splitlines()[-1]
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_rules_of_numbers_take_as_many_answers_as_there_are(tmp_path: Path, scenes: Path, rule: str) -> None:
    grid = local_grid(SITES)
    for site in (1, 2, 3):
        grid.faults[node_of(grid, site)] = lambda message, real: (
            real(message) if message.metadata.message_type != wire.TRAIN else Error(code=0, reason="gone")
        )
    settings = QUICK | {"rounds": 2, "aggregation__rule": rule, "centroids__merge": "matched-median"}
    assert all(
        line["counted"]
        for line in metrics(run(grid, tiny_config(scenes, tmp_path / "run", SITES, **settings)))
    )


def test_rounds_that_wrong_answers_cost_do_not_end_a_run(tmp_path: Path, scenes: Path) -> None:
    grid = local_grid(SITES)
    grid.faults[node_of(grid, 1)] = lambda message, real: (
        wrong(real(message)) if message.metadata.message_type == wire.TRAIN else real(message)
    )
    settings = QUICK | {"rounds": 3, "sites__minimum": SITES}
    with pytest.raises(UncountedRounds):
        run(grid, tiny_config(scenes, tmp_path / "run", SITES, **settings))
    assert len(metrics(tmp_path / "run")) == 3


def test_uncounted_rounds_have_an_exit_code_of_their_own() -> None:
    def command() -> None:
        raise UncountedRounds("The last round of 3 did not count.")

    with pytest.raises(SystemExit) as stop:
        report_user_errors(command)()
    assert stop.value.code == 3


def test_no_line_of_metrics_holds_infinity(tmp_path: Path) -> None:
    append_metrics(
        tmp_path, {"round": 1, "loss": float("inf"), "site_miou": {"a": float("nan")}, "kept": [1.0]}
    )
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "Infinity" not in text and "NaN" not in text
    assert read_metrics(tmp_path) == [{"round": 1, "loss": None, "site_miou": {"a": None}, "kept": [1.0]}]
