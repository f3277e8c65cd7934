"""Does the same recipe run over gRPC between real processes?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.checkpoint import load_checkpoint
from tests.support.deployment import Deployment
from tests.support.federation import TINY, dotted

pytestmark = pytest.mark.net

SITES = 3


def run_config(shards: Path, run_dir: Path, **settings: object) -> str:
    """Write Flower's ``key=value`` words for the tiny federation of this test."""
    given = TINY | {
        "simulation.shards": str(shards),
        "run-dir": str(run_dir),
        "sites.expected": SITES,
        "sites.minimum": 1,
        "sites.wait-seconds": 90,
        "sites.deadline-seconds": 90,
        **{dotted(key): value for key, value in settings.items()},
    }

    def literal(value: object) -> str:
        return f'"{value}"' if isinstance(value, str) else str(value).lower()

    return " ".join(f"{key}={literal(value)}" for key, value in given.items())


def start_sites(net: Deployment, scenes: Path, cache: Path) -> None:
    """Start three sites that know themselves where their shards are."""
    for index in range(SITES):
        net.supernode(
            f"site-{index}",
            f'site="hospital-{index}" shard="{scenes}/site-{index}.jsonl" cache="{cache}/{index}" threads=1',
        )


def metrics(run_dir: Path) -> list[dict[str, object]]:
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_three_sites_train_over_grpc(tmp_path: Path, scenes: Path) -> None:
    run_dir = tmp_path / "run"
    with Deployment(tmp_path / "net") as net:
        net.superlink()
        start_sites(net, scenes, tmp_path / "cache")
        found = net.wait(net.submit(run_config(scenes, run_dir, centroids__polish_passes=1)), 300)
        assert found["status"] == "finished:completed", net.everything()
    lines = metrics(run_dir)
    assert [line["round"] for line in lines] == [1, 2, 3]
    names = [f"hospital-{index}" for index in range(SITES)]
    for line in lines:
        assert line["sites"] == names
        assert line["quarantined"] == {}
        assert 0 < line["miou"] < 1
        assert sorted(line["bytes_up"]) == names
    assert load_checkpoint(run_dir).round == 3
    assert (run_dir / "report.html").is_file()
    ledger = [
        json.loads(text)
        for text in (tmp_path / "cache" / "0" / "state" / "hospital-0" / "egress.jsonl")
        .read_text()
        .splitlines()
    ]
    # the ledger of a site and the server's account agree to the byte
    trained = [entry["total"] for entry in ledger if entry["round"] == 1 and entry["action"] == "train"]
    assert trained == [lines[0]["bytes_up"]["hospital-0"]]
