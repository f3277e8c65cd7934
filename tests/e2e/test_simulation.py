"""Does Flower's simulation engine, started in either way, give what the same run gives inside one process?"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.loop.run import run
from tests.conftest import ROOT
from tests.support.deployed_runs import run_config
from tests.support.deployment import CONNECTION, Deployment
from tests.support.federation import TINY, local_grid, tiny_config
from tests.support.sockets import listening

pytestmark = pytest.mark.net

SITES = 4
OLD_KEY = {"loss.spectral-ridge": 0.5}
"""A key of version 0.1.0, which both commands read; the run in one process says the same under today's key."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> str:
    """The hash of the last checkpoint of the run in one process, without any engine."""
    folder = tmp_path_factory.mktemp("run")
    settings = tiny_config(scenes, folder / "run", SITES, loss__spectral__ridge=0.5)
    return last_hash(run(local_grid(SITES), settings))


def last_hash(run_dir: Path) -> str:
    lines = [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert all(len(line["sites"]) == SITES for line in lines), lines
    assert lines[-1]["miou"] > 0
    return str(lines[-1]["checkpoint_sha256"])


def test_server_simulate_gives_the_same_model(tmp_path: Path, scenes: Path, expected: str) -> None:
    words = [
        sys.executable,
        "-m",
        "server",
        "simulate",
        "--shards",
        str(scenes),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    for key, value in (TINY | OLD_KEY).items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    with (tmp_path / "said").open("w+") as said:
        simulated = subprocess.Popen(
            [*words, "--set", "sites.deadline-seconds=120"], cwd=ROOT, stdout=said, stderr=subprocess.STDOUT
        )
        end, open_to = time.monotonic() + 240, set[str]()
        while simulated.poll() is None and time.monotonic() < end:
            open_to |= listening(simulated.pid)
            time.sleep(0.5)
        simulated.kill()  # where it is not over by now
        code = simulated.wait(30)
        said.seek(0)
        text = said.read()
    assert code == 0, text
    assert "round 3/3  sites 4/4" in text
    assert "left 0 s" in text
    assert open_to == {"127.0.0.1"}  # Ray's processes, with which it takes no connection from elsewhere
    assert last_hash(tmp_path / "run") == expected


@pytest.mark.idle  # a second start of Ray; deployments go through `flwr run` as well
def test_flwr_run_gives_the_same_model(tmp_path: Path, scenes: Path, expected: str) -> None:
    run_dir = tmp_path / "run"
    with Deployment(tmp_path / "net") as net:
        net.superlink("--simulation")
        settings = run_config(scenes, run_dir, TINY | OLD_KEY, sites__expected=SITES)
        federation = f"num-supernodes={SITES} client-resources-num-cpus=1"
        out = net.flwr(
            "run", str(ROOT), CONNECTION, "--run-config", settings, "--federation-config", federation,
            "--format", "json",
        )  # fmt: skip
        found = net.wait(int(json.loads(out[out.index("{") :])["run-id"]), 300)
        assert found == "finished:completed", net.everything()
    assert last_hash(run_dir) == expected
