"""Does the same recipe give the same model over gRPC between real processes as inside one?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.checkpoint import load_checkpoint
from server.loop.run import run
from tests.support.deployment import Deployment
from tests.support.federation import TINY, dotted, named_grid, tiny_config

pytestmark = pytest.mark.net

SITES = 3
NAMES = [f"hospital-{index}" for index in range(SITES)]


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


def in_one_process(scenes: Path, folder: Path, **settings: Any) -> list[dict[str, object]]:
    """Return the metrics of the same sites' run without a network."""
    config = tiny_config(scenes, folder / "run", SITES, **settings)
    return metrics(run(named_grid(NAMES, scenes, folder / "cache"), config))


def check_same(found: list[dict[str, object]], expected: list[dict[str, object]]) -> None:
    """Check that two runs ended with the same model, scored and paid for the same."""
    assert len(found) == len(expected)
    for key in ("checkpoint_sha256", "miou", "loss", "bytes_up"):
        assert [line[key] for line in found] == [line[key] for line in expected], key


def metrics(run_dir: Path) -> list[dict[str, object]]:
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_three_sites_train_over_grpc(tmp_path: Path, scenes: Path) -> None:
    run_dir = tmp_path / "run"
    settings = {"rounds": 2, "centroids__polish_passes": 1}
    with Deployment(tmp_path / "net") as net:
        net.superlink()
        start_sites(net, scenes, tmp_path / "cache")
        found = net.wait(net.submit(run_config(scenes, run_dir, **settings)), 300)
        assert found["status"] == "finished:completed", net.everything()
    lines = metrics(run_dir)
    assert [line["round"] for line in lines] == [1, 2]
    for line in lines:
        assert line["sites"] == NAMES
        assert line["quarantined"] == {}
        assert 0 < line["miou"] < 1  # type: ignore[operator]
        assert sorted(line["bytes_up"]) == NAMES  # type: ignore[call-overload]
    check_same(lines, in_one_process(scenes, tmp_path / "apart", **settings))
    assert load_checkpoint(run_dir).round == 2
    assert (run_dir / "report.html").is_file()
    ledger = [
        json.loads(text)
        for text in (tmp_path / "cache" / "0" / "state" / "hospital-0" / "egress.jsonl")
        .read_text()
        .splitlines()
    ]
    # the ledger of a site and the server's account agree to the byte
    trained = [entry["total"] for entry in ledger if entry["round"] == 1 and entry["action"] == "train"]
    assert trained == [lines[0]["bytes_up"]["hospital-0"]]  # type: ignore[index]
