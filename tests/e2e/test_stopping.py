"""Does Ctrl-C end a simulation within ten seconds, with nothing left running, and does it go on to the same model?"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from common.system.stopping import descendants
from server.loop.run import run
from tests.conftest import ROOT
from tests.support.deployed_runs import run_config
from tests.support.deployment import Deployment
from tests.support.federation import TINY, last_hash, local_grid, metrics, tiny_config
from tests.support.warm import children, gone, start_warm_site

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.idle]

SECONDS = 10.0
ROUNDS = 5


def command(shards: Path, run_dir: Path, cache: Path) -> list[str]:
    words = [sys.executable, "-m", "server", "simulate", "--shards", str(shards), "--run-dir", str(run_dir)]
    told = TINY | {"sites.deadline-seconds": 300, "rounds": ROUNDS, "simulation.cache": str(cache)}
    for key, value in told.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    return words


def started(words: Sequence[str], said: Path) -> subprocess.Popen[bytes]:
    with said.open("wb") as file:
        return subprocess.Popen(
            words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def stopped(process: subprocess.Popen[bytes], how: signal.Signals, whole_group: bool) -> tuple[float, int]:
    """Send a signal as a terminal does (to the whole group) or as a manager does; return seconds and exit code."""
    below, began = descendants(process.pid), time.monotonic()
    (os.killpg if whole_group else os.kill)(process.pid, how)
    code = process.wait(60)
    took = time.monotonic() - began
    assert all(gone(child, 5) for child in below), "a process was left behind"
    return took, code


def wait_for(process: subprocess.Popen[bytes], said: Path, words: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while words not in said.read_text(errors="replace") and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)


def next_words(said: str) -> list[str]:
    """Return the command that the last line names."""
    return shlex.split(said.strip().splitlines()[-1])


def check_moments(
    shards: Path, folder: Path, moments: Sequence[tuple[str, float, signal.Signals, bool]]
) -> None:
    """Interrupt a run at each moment (words in its output, then seconds), go on, and compare the last hash."""
    settings = tiny_config(
        shards, folder / "whole", 4, rounds=ROUNDS, simulation__cache=str(folder / "cache")
    )
    run(local_grid(4), settings)
    words = command(shards, folder / "run", folder / "fresh")
    for number, (seen, pause, how, group) in enumerate(moments):
        said = folder / f"{number}.txt"
        process = started(words, said)
        wait_for(process, said, seen)
        time.sleep(pause)
        if process.poll() is not None:  # this machine was quicker than the moment
            continue
        took, code = stopped(process, how, group)
        text = said.read_text()
        assert took < SECONDS, (seen, pause, took, text)
        assert "Traceback" not in text, text
        if code != -how:  # so it ends while its libraries are imported
            assert code == 128 + how, text
            assert "stopped" in text
        if text.strip() not in ("", "stopped"):  # the command itself had not begun yet
            words = next_words(text)
            assert words[:4] == [sys.executable, "-m", "server", "simulate"], text
    last = started(words, folder / "last.txt")
    assert last.wait(300) == 0, (folder / "last.txt").read_text()
    assert last_hash(folder / "run") == last_hash(folder / "whole")


def test_a_simulation_that_is_stopped_goes_on_to_the_same_model(tmp_path: Path, scenes: Path) -> None:
    check_moments(scenes, tmp_path, [("round 2/", 0.1, signal.SIGINT, True)])


@pytest.mark.idle
def test_ten_moments_of_a_simulation(tmp_path: Path, scenes: Path) -> None:
    moments = [
        ("", 0.7, signal.SIGINT, True),  # libraries are being imported
        ("", 3.0, signal.SIGINT, False),
        ("", 9.0, signal.SIGINT, True),  # Ray starts
        ("caching", 0.2, signal.SIGTERM, False),
        ("connected", 0.0, signal.SIGINT, False),
        ("connected", 1.0, signal.SIGTERM, True),
        ("round 1/", 0.0, signal.SIGINT, True),
        ("round 2/", 0.3, signal.SIGINT, False),
        ("round 3/", 0.0, signal.SIGTERM, False),
        ("round 4/", 0.05, signal.SIGINT, True),
    ]
    check_moments(scenes, tmp_path, moments)


def test_what_a_killed_process_started_ends_too(tmp_path: Path) -> None:
    said = tmp_path / "said.txt"
    code = (
        "import time\nfrom common.system.device import run_in_subprocess\nrun_in_subprocess(time.sleep, 600)"
    )
    parent = started(
        [sys.executable, "-c", f"if __name__ == '__main__':\n {code.replace(chr(10), chr(10) + ' ')}"], said
    )
    end = time.monotonic() + 60
    while (
        len(below := descendants(parent.pid)) < 2 and time.monotonic() < end
    ):  # the tracker of resources, and it
        time.sleep(0.1)
    time.sleep(4)
    parent.kill()
    parent.wait(10)
    assert below and all(gone(child, 10) for child in below), said.read_text()


@pytest.mark.idle
def test_a_site_and_a_server_that_are_stopped_end_and_go_on(tmp_path: Path, scenes: Path) -> None:
    run_dir = tmp_path / "run"

    def round_is_over(number: int) -> None:
        end = time.monotonic() + 240
        while len(metrics(run_dir)) < number and time.monotonic() < end:
            time.sleep(0.1)

    with Deployment(tmp_path / "net") as net:
        net.lasting_superlink()
        net.executor()
        start_warm_site(net, "site", "hospital", scenes / "site-0.jsonl", tmp_path / "cache")
        settings = {"sites__expected": 1, "rounds": 30, "local__steps": 20}
        net.submit(run_config(scenes, run_dir, **settings))
        round_is_over(2)
        (server,) = children(net.processes["superexec"].pid)
        os.kill(server, signal.SIGTERM)
        assert gone(server, SECONDS), net.everything()
        began = time.monotonic()
        site = net.processes["site"]
        below = descendants(site.pid)
        os.kill(site.pid, signal.SIGINT)
        assert site.wait(60) == 0
        assert time.monotonic() - began < SECONDS
        assert all(gone(child, 5) for child in below)
        assert f"go on with resume={run_dir}" in (run_dir / "log.txt").read_text()
        done = len(metrics(run_dir))
        start_warm_site(net, "again", "hospital", scenes / "site-0.jsonl", tmp_path / "cache")
        run_id = net.submit(run_config(scenes, run_dir, **settings, resume=str(run_dir)))
        assert net.wait(run_id, 300) == "finished:completed", net.everything()
        assert [line["round"] for line in metrics(run_dir)] == list(range(1, 31))
        assert 2 <= done < 30
