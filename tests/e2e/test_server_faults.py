"""Does a run come back when the server's clock is set, or its SuperLink loses what it runs or all that it knew?"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deployed_runs import run_config
from tests.support.faulty_federation import (
    PATIENCE_SECONDS,
    Federation,
    check_acknowledged,
    faulty_federation,
    read_lines,
    unbroken,
    until,
)

pytestmark = [pytest.mark.net, pytest.mark.idle]

SITES = ("alpha", "beta")
PLAN = dict.fromkeys(("clock/alpha/2", "loses/alpha/2", "loses/alpha/4"), "waits")
ROUNDS = 5
SETTINGS: dict[str, Any] = {
    "preset": "fuss-clean",
    "local__keep_optimizer": True,
    "eval__every": 0,
    "rounds": ROUNDS,
}


@pytest.fixture
def federation(tmp_path: Path, scenes: Path) -> Iterator[Federation]:
    found = faulty_federation(tmp_path, scenes, PLAN)
    with found.net:
        yield found


def start_sites(federation: Federation) -> None:
    for index, name in enumerate(SITES):
        federation.start_site(name, name, index)


def sites_end(federation: Federation) -> None:
    """Wait until both sites have ended with code 0, after which their services start them again."""
    for name in SITES:
        assert federation.net.processes[name].wait(PATIENCE_SECONDS) == 0, federation.net.log(name)


def submit(federation: Federation, run_dir: Path, name: str, **more: Any) -> int:
    both = {
        "sites__expected": 2,
        "sites__minimum": 2,
        "sites__wait_seconds": 180,
        "sites__deadline_seconds": 180,
    }
    words = run_config(federation.shards, run_dir, **SETTINGS | both | more, name=name)
    return federation.net.submit(words)


def test_a_server_whose_clock_jumps_by_more_than_sites_are_believed(
    federation: Federation, tmp_path: Path
) -> None:
    net, run_dir = federation.net, tmp_path / "run"
    federation.superlink()
    federation.executor()
    start_sites(federation)
    run_id = submit(federation, run_dir, "clock")
    federation.reached("clock-alpha-2")
    federation.set_clock(
        "server", 400
    )  # now the run's last sign of life, and the sites' requests, are from long ago
    found = net.wait(run_id, PATIENCE_SECONDS)
    assert found == "finished:failed", found
    federation.go("clock-alpha-2")
    sites_end(federation)

    federation.set_clock("server", 0)  # somebody sets it right
    start_sites(federation)
    run_id = submit(federation, run_dir, "clock", resume=str(run_dir))
    found = net.wait(run_id, PATIENCE_SECONDS)
    assert found == "finished:completed", net.everything()
    check_acknowledged(run_dir, ROUNDS)
    assert read_lines(run_dir)[-1]["sites"] == list(SITES)


def test_a_superlink_that_takes_its_run_along_and_one_that_forgets_everything(
    federation: Federation, tmp_path: Path
) -> None:
    net, run_dir = federation.net, tmp_path / "run"
    expected = unbroken(
        SITES, federation.shards, federation.cache, tmp_path / "reference", SETTINGS | {"name": "loses"}
    )
    kept = str(net.folder / "kept.db")
    net.superlink("--database", kept)
    start_sites(federation)
    run_id = submit(federation, run_dir, "loses")
    federation.reached("loses-alpha-2")
    net.stop(
        "superlink", signal.SIGKILL
    )  # with Flower's default isolation the server application is its child
    net.superlink("--database", kept)
    assert net.wait(run_id, PATIENCE_SECONDS) == "finished:failed"
    federation.go("loses-alpha-2")

    submit(federation, run_dir, "loses", resume=str(run_dir))
    federation.reached("loses-alpha-4")
    net.stop("superlink", signal.SIGKILL)
    net.superlink()  # without its database
    federation.go("loses-alpha-4")
    sites_end(federation)
    start_sites(federation)
    run_id = submit(federation, run_dir, "loses", resume=str(run_dir))
    until((run_dir / "report.html").exists, "the run did not end", net)
    assert net.wait(run_id, PATIENCE_SECONDS) == "finished:completed", net.everything()
    check_acknowledged(run_dir, ROUNDS)
    assert read_lines(run_dir)[-1]["checkpoint_sha256"] == expected
