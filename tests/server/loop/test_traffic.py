"""Do networks stay at their sites where they should, and do changes of them travel that both sides add up alike?"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message

from client.state import load_state
from common import wire
from common.checkpoint import arrays_hash, load_checkpoint
from common.models.differences import REFERENCE, decode_change
from common.models.network import build_network, network_to_arrays
from server.loop.run import run
from tests.server.loop.test_network_rounds import SITES, SYNTHETIC, Real, heard, node_of, sent_to, state_of
from tests.support.federation import local_grid, metrics, network_config, same_arrays
from tests.support.local_grid import Answer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("narrow")]


def test_local_only_networks_stay_at_their_sites(tmp_path: Path, scenes: Path) -> None:
    """Neither messages nor the checkpoint hold them but in a round that is scored, and a run goes on from disk."""
    grid = local_grid(SITES)
    answers = heard(grid, 0)
    given: dict[str, Any] = {"centroids__share": "none", "eval__shard": "eval.jsonl", "eval__every": 0}
    first = run(grid, network_config(scenes, tmp_path, **given, rounds=3))
    groups = [sorted(answer.content.array_records) for answer in answers[0]]
    assert groups[-3:] == [[], [], ["statistics", "weights"]], "shown where it is scored"
    down = [sorted(sent_to(grid, 0, number).content.array_records) for number in (1, 2, 3)]
    assert down == [["statistics", "weights"], [], []]
    assert not [key for key in load_checkpoint(first).extra if key.startswith("site/")]
    assert metrics(first)[1]["bytes_up"]["site-0"] < 2000
    stopped = run(local_grid(SITES), network_config(scenes, tmp_path / "b", **given, rounds=2))
    resumed = network_config(scenes, tmp_path / "b", **given, rounds=3, resume=str(stopped))
    again = run(local_grid(SITES), resumed)
    assert metrics(again)[-1]["site_miou"] == metrics(first)[-1]["site_miou"], (
        "it trained on from its own disk"
    )


def test_a_site_that_lost_its_own_network_says_so(tmp_path: Path, scenes: Path) -> None:
    given: dict[str, Any] = {
        "centroids__share": "none",
        "rounds": 1,
        "simulation__cache": str(tmp_path / "cache"),
    }
    stopped = run(local_grid(SITES), network_config(scenes, tmp_path, **given))
    shutil.rmtree(tmp_path / "cache/state/site-1")
    again = run(
        local_grid(SITES), network_config(scenes, tmp_path, **given | {"rounds": 2}, resume=str(stopped))
    )
    assert "is not on its disk any more" in metrics(again)[-1]["quarantined"]["site-1"]
    assert metrics(again)[-1]["sites"] == [f"site-{i}" for i in range(SITES) if i != 1]


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_server_and_site_hold_the_same_to_the_bit(tmp_path: Path, scenes: Path, kind: str) -> None:
    """After every round, also where a site missed one; and what rounding left out of a change comes with the next."""
    grid = local_grid(SITES)
    grid.faults[node_of(grid, 2)] = lambda message, real: (
        Error(2, "no") if message.metadata.group_id == "2" else real(message)
    )
    answers = heard(grid, 0)
    given: dict[str, Any] = {
        "wire__differences": kind,
        "rounds": 4,
        "simulation__cache": str(tmp_path / "cache"),
    }
    config = network_config(scenes, tmp_path, **given)
    run_dir = run(grid, config)
    kinds = [sorted(sent_to(grid, 2, number).content.array_records) for number in (1, 2, 3, 4)]
    whole, changes = ["statistics", "weights"], ["differences", "scales", "statistics"]
    assert kinds == [whole, changes, whole, changes], "a site that did not answer is sent the whole"
    trained = [answer for answer in answers[0] if "differences" in answer.content.array_records]
    assert len(trained) == 4 and {
        array.dtype for answer in trained for array in answer.content.array_records["differences"].values()
    } == {kind}
    state = load_state(tmp_path / "cache/state/site-0", load_checkpoint(run_dir).run_key, 5)
    base = {
        key.removeprefix("received/"): value for key, value in state.items() if key.startswith("received/")
    }
    assert arrays_hash(base) == wire.decode_update(trained[-1].content, 1 << 31).facts[REFERENCE]
    # what the server sent in the last round, added to what the site held before, is what it holds now
    before = load_state(tmp_path / "cache/state/site-0", load_checkpoint(run_dir).run_key, 4)
    told = wire.decode_task(sent_to(grid, 0, 4)).groups
    for key, value in base.items():
        step = decode_change(told["differences"][key], told["scales"][key])
        assert np.array_equal(value, before[f"received/{key}"] + step)
    # the last model is what the last change was rounded from: near, and not the same
    model = state_of(run_dir).model
    assert not same_arrays({key: model[key] for key in base}, base)


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.4), ("float16", 0.6)])
def test_changes_are_small_and_train_as_whole_weights_do(
    tmp_path: Path, scenes: Path, kind: str, share: float
) -> None:
    given: dict[str, Any] = {"rounds": 2}
    plain = run(local_grid(SITES), network_config(scenes, tmp_path / "a", **given))
    small = run(local_grid(SITES), network_config(scenes, tmp_path / "b", **given, wire__differences=kind))
    for way in ("bytes_up", "bytes_down"):
        sizes = [metrics(folder)[-1][way]["site-0"] for folder in (plain, small)]
        assert sizes[1] < share * sizes[0]
    # of later rounds a random network this small makes chaos
    one, other = state_of(plain, 1).model, state_of(small, 1).model
    start = network_to_arrays(build_network(SYNTHETIC.num_classes, load_checkpoint(plain).config.network, 0))[
        0
    ]
    moved = sum(float(np.square(one[key] - start[key]).sum()) for key in start) ** 0.5
    apart = sum(float(np.square(one[key] - other[key]).sum()) for key in start) ** 0.5
    assert 0 < apart < 0.02 * moved


def test_a_site_that_changed_what_it_holds_is_left_out_and_sent_the_whole(
    tmp_path: Path, scenes: Path
) -> None:
    cache = tmp_path / "cache"
    grid = local_grid(SITES)

    def spoil(message: Message, real: Real) -> Answer:
        if message.metadata.group_id == "2":
            shutil.rmtree(cache / "state/site-1")
        return real(message)

    grid.faults[node_of(grid, 1)] = spoil
    given: dict[str, Any] = {"wire__differences": "int8", "rounds": 3, "simulation__cache": str(cache)}
    run_dir = run(grid, network_config(scenes, tmp_path, **given))
    assert "it will be sent whole" in metrics(run_dir)[1]["quarantined"]["site-1"]
    assert "site-1" in metrics(run_dir)[2]["sites"]


def test_a_line_of_metrics_says_where_a_sites_time_went(tmp_path: Path, scenes: Path) -> None:
    given: dict[str, Any] = {"rounds": 1, "eval__shard": "eval.jsonl"}
    run_dir = run(local_grid(SITES), network_config(scenes, tmp_path, **given))
    line = metrics(run_dir)[0]
    assert sorted(line["site_seconds"]) == [f"site-{i}" for i in range(SITES)]
    for parts in line["site_seconds"].values():
        assert list(parts) == ["data", "forward", "backward", "other", "network"]
        assert all(value >= 0 for value in parts.values()) and parts["forward"] > 0 and parts["backward"] > 0
        assert sum(value for name, value in parts.items() if name != "network") < line["seconds"]
    assert 0 < line["scoring_seconds"] < line["seconds"]
    report = (run_dir / "report.html").read_text()
    assert "Where the sites' time went" in report and "at the server: scoring" in report
