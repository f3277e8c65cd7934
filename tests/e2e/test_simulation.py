"""Does Flower's simulation engine, started in either way, give what the same run gives inside one process?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.rounds import run
from tests.conftest import ROOT
from tests.e2e.test_deployment import run_config
from tests.support.deployment import CONNECTION, Deployment
from tests.support.federation import TINY, local_grid, tiny_config

pytestmark = pytest.mark.net

SITES = 4


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> str:
    """The hash of the last checkpoint of the run in one process, without any engine."""
    run_dir = run(local_grid(SITES), tiny_config(scenes, tmp_path_factory.mktemp("run") / "run", SITES))
    return last_hash(run_dir)


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
    for key, value in TINY.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    done = subprocess.run(
        [*words, "--set", "sites.deadline-seconds=120"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 3/3  sites 4/4" in done.stdout
    assert "left 0 s" in done.stdout
    assert last_hash(tmp_path / "run") == expected


def test_flwr_run_gives_the_same_model(tmp_path: Path, scenes: Path, expected: str) -> None:
    run_dir = tmp_path / "run"
    with Deployment(tmp_path / "net") as net:
        net.superlink("--simulation")
        settings = run_config(scenes, run_dir, sites__expected=SITES)
        federation = f"num-supernodes={SITES} client-resources-num-cpus=1"
        out = net.flwr(
            "run", str(ROOT), CONNECTION, "--run-config", settings, "--federation-config", federation,
            "--format", "json",
        )  # fmt: skip
        found = net.wait(int(json.loads(out[out.index("{") :])["run-id"]), 300)
        assert found["status"] == "finished:completed", net.everything()
    assert last_hash(run_dir) == expected
