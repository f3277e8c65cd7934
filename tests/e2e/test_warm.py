"""Does a site whose tasks are forks of a warm process do what a plain site does?"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.e2e.test_deployment import NAMES, SITES, check_same, in_one_process, metrics, run_config
from tests.support.deployment import CONNECTION, Deployment
from tests.support.scripts import load_script
from tests.support.warm import children, gone, start_warm_site, started_tasks

pytestmark = pytest.mark.net

certs = load_script("certs")


def start_warm_sites(net: Deployment, scenes: Path, cache: Path) -> None:
    """Start the sites of the plain deployment, warm."""
    for index in range(SITES):
        start_warm_site(
            net, f"warm-{index}", NAMES[index], scenes / f"site-{index}.jsonl", cache / str(index)
        )


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with Deployment(tmp_path_factory.mktemp("warm") / "net") as deployment:
        deployment.superlink()
        yield deployment


def test_warm_sites_end_with_the_model_of_one_process(net: Deployment, tmp_path: Path, scenes: Path) -> None:
    settings = {"rounds": 2, "preset": "fuss-clean"}
    start_warm_sites(net, scenes, tmp_path / "cache")
    found = net.wait(net.submit(run_config(scenes, tmp_path / "warm", **settings)), 300)
    assert found["status"] == "finished:completed", net.everything()
    lines = metrics(tmp_path / "warm")
    assert all(len(line["sites"]) == SITES for line in lines)  # type: ignore[arg-type]
    check_same(lines, in_one_process(scenes, tmp_path / "apart", **settings))  # plain sites do so too
    # each message had a process of its own
    assert len(set(started_tasks(net, "warm-0"))) == len(started_tasks(net, "warm-0")) >= 3


def test_a_task_that_is_killed_costs_one_site_one_round(
    net: Deployment, tmp_path: Path, scenes: Path
) -> None:
    if "warm-0" not in net.processes:
        start_warm_sites(net, scenes, tmp_path / "cache")
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
    assert found["status"] == "finished:completed", net.everything()
    lines = metrics(run_dir)
    everybody = NAMES
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
    if "warm-0" not in net.processes:
        start_warm_sites(net, scenes, tmp_path / "cache")
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
    assert found["status"] == "finished:completed", net.everything()
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
        assert served.wait(30) == code
        assert all(gone(child, 30) for child in below)


def test_a_warm_site_shows_its_key_and_ends_where_it_is_refused(tmp_path: Path, scenes: Path) -> None:
    certificates = tmp_path / "certificates"
    certs.make_server(certificates, [])
    for name in ("alpha", "stranger"):
        certs.make_site(certificates, name)
    with Deployment(tmp_path / "net", certificates=certificates) as net:
        net.superlink()
        net.flwr("supernode", "register", str(certificates / "public" / "alpha.pub"), CONNECTION)
        for name, shard in (("alpha", "site-0"), ("stranger", "site-1")):
            own = certificates / "sites" / name
            identity = ("--root-certificates", str(own / "ca.crt"), "--key", str(own / "site.key"))
            start_warm_site(net, name, name, scenes / f"{shard}.jsonl", tmp_path / name, *identity)
        assert net.processes["stranger"].wait(90) == 1
        assert "Failed to activate SuperNode" in net.log("stranger")
        end = time.monotonic() + 60
        while "Activated" not in (net.folder / "superlink.log").read_text() and time.monotonic() < end:
            time.sleep(0.2)
        assert net.processes["alpha"].poll() is None, net.log("alpha")
        assert (net.folder / "superlink.log").read_text().count("[Fleet.ActivateNode] Activated") == 1
