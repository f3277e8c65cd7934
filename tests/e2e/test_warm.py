"""Does a site whose tasks are forks of a warm process do what a plain site does?"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.deployed_runs import NAMES, SITES, check_same, in_one_process, run_config
from tests.support.deployment import Deployment
from tests.support.federation import metrics
from tests.support.warm import children, gone, start_warm_site, started_tasks

pytestmark = pytest.mark.net


def test_warm_sites_end_with_the_model_of_one_process(net: Deployment, tmp_path: Path, scenes: Path) -> None:
    settings = {"rounds": 2, "preset": "fuss-clean", "centroids__polish_passes": 1}
    old_key = {"loss__intra_shift": 0.3}  # of version 0.1.0, by a real `flwr run --run-config`
    found = net.wait(net.submit(run_config(scenes, tmp_path / "warm", **settings, **old_key)), 300)
    assert found == "finished:completed", net.everything()
    lines = metrics(tmp_path / "warm")
    assert all(len(line["sites"]) == SITES for line in lines)  # type: ignore[arg-type]
    todays_key = {"loss__correspondence__intra_shift": 0.3}
    check_same(lines, in_one_process(scenes, tmp_path / "apart", **settings, **todays_key))
    # each message had a process of its own
    assert len(set(started_tasks(net, "warm-0"))) == len(started_tasks(net, "warm-0")) >= 3


def test_a_task_that_is_killed_costs_one_site_one_round(
    net: Deployment, tmp_path: Path, scenes: Path
) -> None:
    run_dir = tmp_path / "run"
    run_id = net.submit(run_config(scenes, run_dir, rounds=4, local__steps=30, preset="fuss-clean"))
    end = time.monotonic() + 240
    while not metrics(run_dir) and time.monotonic() < end:
        time.sleep(0.05)
    before = started_tasks(net, "warm-1")
    while started_tasks(net, "warm-1") == before and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.3)  # let it take its message
    killed = started_tasks(net, "warm-1")[-1]
    os.kill(killed, signal.SIGKILL)

    found = net.wait(run_id, 300)
    assert found == "finished:completed", net.everything()
    lines = metrics(run_dir)
    everybody = list(NAMES)
    lost = [line for line in lines if line["sites"] != everybody]
    assert len(lost) == 1, lines
    assert lost[0]["sites"] == ["hospital-0", "hospital-2"]
    assert lost[0]["quarantined"] == {"hospital-1": "its client process died"}
    assert lines[-1]["round"] == 4
    assert lines[-1]["sites"] == everybody
    assert f"process {killed} did not finish" in (net.folder / "warm-1.log").read_text()
    assert net.processes["warm-1"].poll() is None


def test_a_site_that_dies_while_its_answer_is_half_sent_holds_up_nobody(
    net: Deployment, tmp_path: Path, scenes: Path
) -> None:
    now = tmp_path / "now"
    path = f"{ROOT / 'tests/support/half_sent'}{os.pathsep}{ROOT}"
    extra = {"PYTHONPATH": path, "TEST_HALF_SENT": str(now)}
    start_warm_site(net, "half", "half", scenes / "site-3.jsonl", tmp_path / "half", extra=extra)
    run_dir, everybody = tmp_path / "run", ["half", *NAMES]
    settings = {"sites__expected": SITES + 1, "sites__wait_seconds": 120, "sites__deadline_seconds": 20}
    run_id = net.submit(run_config(scenes, run_dir, rounds=4, preset="fuss-clean", **settings))
    end = time.monotonic() + 240
    while not metrics(run_dir) and time.monotonic() < end:
        time.sleep(0.05)
    now.touch()
    net.processes["half"].wait(120)

    found = net.wait(run_id, 300)
    assert found == "finished:completed", net.everything()
    lines = metrics(run_dir)
    assert lines[0]["sites"] == everybody
    lost = next(line for line in lines if "half" not in line["sites"])  # type: ignore[operator]
    assert lost["sites"] == everybody[1:]
    assert lost["quarantined"] == {"half": "its answer was lost on the way"}
    assert lines[-1]["round"] == 4
    assert lines[-1]["sites"] == everybody[1:]
    assert lost["seconds"] < 100  # type: ignore[operator]  # Flower itself would ask for three minutes


def test_nothing_is_left_when_a_warm_site_is_stopped_or_killed(
    net: Deployment, tmp_path: Path, scenes: Path
) -> None:
    for how, code in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        name = f"brief-{how.name}"
        start_warm_site(net, name, name, scenes / "site-3.jsonl", tmp_path / name)
        end = time.monotonic() + 60
        while "waits for tasks" not in net.log(name) and time.monotonic() < end:
            time.sleep(0.1)
        served = net.processes[name]
        below = children(served.pid)
        assert len(below) == 1  # the SuperNode
        os.kill(served.pid, how)
        began = time.monotonic()
        assert served.wait(30) == code
        assert time.monotonic() - began < 10
        assert all(gone(child, 30) for child in below)
