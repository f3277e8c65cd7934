"""Does a run of real processes end as promised, whatever its sites, its server or its disks do?

One deployment, several runs. Sites misbehave on command (`tests.support.faulty_client`); the server's parts are
killed and started again. Everything waits for signs, not for times, as far as Flower lets it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.checkpoint import checkpoint_path
from tests.support.deployed_runs import run_config
from tests.support.deployment import CONNECTION
from tests.support.faulty_client import SECRET
from tests.support.faulty_federation import (
    PATIENCE_SECONDS,
    Federation,
    check_acknowledged,
    faulty_federation,
    read_lines,
    unbroken,
    until,
)
from tests.support.warm import children, gone, started_tasks

pytestmark = [pytest.mark.net, pytest.mark.idle]

DEADLINE_SECONDS = 40
SITES = ("alpha", "beta", "crook", "sick")
PLAN = {
    "answers/crook/1": "nan",
    "answers/crook/2": "wrong_shape",
    "answers/crook/3": "truncated",
    "answers/crook/4": "other_version",
    "answers/crook/5": "waits",
    "answers/sick/1": "infinity",
    "answers/sick/2": "wrong_type",
    "answers/sick/3": "oversized",
    "answers/sick/4": "raises",
    "answers/sick/5": "waits",
    "answers/sick/6": "full_disk",
    "answers/alpha/2": "waits",
    "answers/alpha/4": "waits",
    "answers/alpha/7": "waits",
    "servers/alpha/2": "waits",
    "servers/alpha/3": "waits",
    "servers/alpha/4": "waits",
    "servers/alpha/5": "waits",
}
SETTINGS: dict[str, Any] = {"preset": "fuss-clean", "local__keep_optimizer": True, "eval__every": 0}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Iterator[Federation]:
    found = faulty_federation(tmp_path_factory.mktemp("faults"), scenes, PLAN)
    with found.net:
        found.superlink()
        found.executor()
        for index, name in enumerate(SITES):
            found.start_site(name, name, index)
        yield found


def test_bad_answers_lost_sites_and_wrong_clocks(federation: Federation, tmp_path: Path) -> None:
    net, run_dir, rounds = federation.net, tmp_path / "run", 9
    settings = SETTINGS | {
        "name": "answers",
        "sites__expected": 4,
        "sites__wait_seconds": 180,
        "sites__deadline_seconds": DEADLINE_SECONDS,
    }
    run_id = net.submit(run_config(federation.shards, run_dir, rounds=rounds, **settings))

    federation.reached("answers-alpha-2")
    for name in ("beta", "crook", "sick"):  # a process that starts takes a loaded machine away from them
        federation.arrived(name, 2)
    federation.set_clock("alpha", -240)
    federation.start_site("twin", "alpha", 3)
    (run_dir / "left-out.json").unlink()  # sites are asked back, before three of their answers are refused
    federation.go("answers-alpha-2")
    federation.reached("answers-alpha-4")
    federation.set_clock("alpha", -220)
    (run_dir / "left-out.json").unlink()
    federation.go("answers-alpha-4")

    federation.reached("answers-crook-5")
    federation.reached("answers-sick-5")
    for name in ("alpha", "beta"):  # what a site loses half way up is another fault (see the table)
        federation.arrived(name, 5)
    net.stop("crook", signal.SIGKILL)
    federation.set_clock("beta", 7200)  # Flower takes no request from two hours ahead
    assert net.processes["beta"].wait(PATIENCE_SECONDS) == 0
    federation.set_clock("beta", 0)
    federation.start_site("crook-again", "crook", 2)
    federation.start_site("beta-again", "beta", 1)
    until(lambda: len(read_lines(run_dir)) == 5, "round 5 did not end", net)
    federation.go("answers-sick-5")

    federation.reached("answers-alpha-7")
    for name in ("twin", "crook-again", "beta-again"):  # until their greetings are answered
        until(lambda name=name: started_tasks(net, name), f"{name} was not greeted", net)  # type: ignore[misc]
        assert gone(started_tasks(net, name)[-1], PATIENCE_SECONDS)
    time.sleep(1)
    federation.go("answers-alpha-7")

    until((run_dir / "report.html").exists, "the run did not end", net)
    found = net.wait(run_id, PATIENCE_SECONDS)
    assert found == "finished:completed", net.everything()
    check_acknowledged(run_dir, rounds)
    lines = {line["round"]: line for line in read_lines(run_dir)}
    reasons = {
        (1, "crook"): "holds NaN or infinity",
        (1, "sick"): "holds NaN or infinity",
        (2, "crook"): "has shape (3, 2)",
        (2, "sick"): "type that is not allowed",
        (3, "crook"): "cannot be read as an array",
        (3, "sick"): "oversized",
        (4, "crook"): "wire version 99, expected 3",
        (4, "sick"): "its client application raised an error",
        (5, "crook"): f"did not answer within {DEADLINE_SECONDS} s",
        (5, "sick"): f"did not answer within {DEADLINE_SECONDS} s",
        (6, "sick"): "No space left on device); nothing was sent",
    }
    log = (run_dir / "log.txt").read_text()
    for (number, name), words in reasons.items():
        assert words in lines[number]["quarantined"][name], lines[number]["quarantined"]
        assert f"site {name} is left out: {lines[number]['quarantined'][name]}" in log
    for number, line in lines.items():  # what others do costs a site nothing, nor does a clock set by minutes
        assert "alpha" in line["sites"], line["quarantined"]
        assert "beta" in line["sites"] or number in (5, 6, 7, 8), line["quarantined"]
    assert lines[6]["sites"] == ["alpha"]
    assert lines[rounds]["sites"] == sorted(SITES)
    for name in ("beta", "crook"):
        assert f"site {name} is not connected any more" in log
        assert f"site {name} takes part from now on" in log
    assert "another node already calls itself alpha" in log
    assert SECRET not in log and str(federation.shards) not in json.dumps(
        [x["quarantined"] for x in lines.values()]
    )
    net.stop("twin")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a few megabytes of memory at ``folder``; tells whether this system lets us."""
    folder.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    words = [str(mount), "-t", "tmpfs", "-o", "size=24m", "none", str(folder)]
    mounted = bool(mount and unmount) and subprocess.run(words, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run([str(unmount), "--lazy", str(folder)], check=True)  # a failed test leaves writers


@contextlib.contextmanager
def no_space(run_dir: Path, mounted: bool) -> Iterator[None]:
    """Fill the small disk; where there is none, fill at least the file of metrics."""
    if mounted:
        filler = run_dir / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield
        filler.unlink()
        return
    ledger, kept = run_dir / "metrics.jsonl", run_dir / "metrics.kept"
    ledger.rename(kept)
    ledger.symlink_to("/dev/full")
    yield
    kept.replace(ledger)


def test_a_server_that_is_killed_and_runs_out_of_disk(federation: Federation, tmp_path: Path) -> None:
    net, rounds = federation.net, 6
    settings = SETTINGS | {"name": "servers", "rounds": rounds}
    expected = unbroken(SITES[:3], federation.shards, federation.cache, tmp_path / "reference", settings)
    own = net.folder / "sick.log"
    until(lambda: "waits for tasks" in own.read_text(errors="replace"), "the sites did not start", net)
    manifest = federation.shards / "site-3.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-40])  # half-written
    (tokens,) = (federation.cache / "beta").glob("*/tokens.bin")
    tokens.write_bytes(tokens.read_bytes()[:-1000])
    settings |= {"sites__expected": 4, "sites__wait_seconds": 180, "sites__deadline_seconds": 180}

    with small_disk(tmp_path / "disk") as mounted:
        run_dir = tmp_path / "disk" / "run"

        def submit(**more: Any) -> int:
            return net.submit(run_config(federation.shards, run_dir, **settings, **more))

        run_id = submit()
        federation.reached("servers-alpha-2")
        for name in ("beta", "crook"):  # one on its way to the server would be lost, and the hash another one
            federation.arrived(name, 2)
        net.stop("superlink", signal.SIGKILL)
        federation.superlink()
        federation.go("servers-alpha-2")

        federation.reached("servers-alpha-3")  # the run went on
        for name in ("beta", "crook"):
            federation.arrived(name, 3)
        federation.believed(len(SITES), 32)  # the SuperLink was away
        # A site beats every 30 s and is believed for 60: after a longer jump it may seem to be gone for a moment.
        federation.set_clock("server", 20)
        federation.go("servers-alpha-3")

        federation.reached("servers-alpha-4")
        for process in children(net.processes["superexec"].pid):
            os.kill(process, signal.SIGKILL)
            assert gone(process, PATIENCE_SECONDS)
        assert [line["round"] for line in read_lines(run_dir)] == [1, 2, 3]
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write('{"round": 4, "mi')
        half = checkpoint_path(run_dir, 3).read_bytes()[:5000]
        checkpoint_path(run_dir, 4).write_bytes(half)
        federation.go("servers-alpha-4")

        run_id = submit(resume=str(run_dir))
        federation.reached("servers-alpha-5")
        with no_space(run_dir, mounted):
            federation.go("servers-alpha-5")
            assert net.wait(run_id, PATIENCE_SECONDS) == "finished:failed"
        said = net.flwr("log", str(run_id), CONNECTION, "--show")  # the one place that is not full
        assert "No space left on device; free some space" in said, said[-3000:]

        run_id = submit(resume=str(run_dir))
        until((run_dir / "report.html").exists, "the run did not end", net)
        found = net.wait(run_id, PATIENCE_SECONDS)
        assert found == "finished:completed", net.everything()
        check_acknowledged(run_dir, rounds)
        for line in read_lines(run_dir):
            assert line["sites"] == ["alpha", "beta", "crook"], line["quarantined"]
            assert "is no JSON" in line["quarantined"]["sick"]
        assert read_lines(run_dir)[-1]["checkpoint_sha256"] == expected
        said = "".join(path.read_text(errors="replace") for path in net.folder.glob("beta*.log"))
        assert "feature cache" in said and "is damaged" in said
