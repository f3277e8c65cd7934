"""Does a whole network travel over gRPC between real processes, there and back, in one round?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.checkpoint import load_checkpoint
from common.models.network import build_network, network_to_arrays
from server.run_dir import read_metrics
from tests.support.deployment import Deployment
from tests.support.federation import TINY_NETWORK
from tests.support.warm import start_warm_site

pytestmark = pytest.mark.net

SITES = 2


def run_config(shards: Path, run_dir: Path) -> str:
    """Write Flower's ``key=value`` words for one round of supervised training."""
    given = TINY_NETWORK | {
        "rounds": 1,
        "simulation.shards": str(shards),
        "run-dir": str(run_dir),
        "sites.expected": SITES,
        "sites.wait-seconds": 120,
        "sites.deadline-seconds": 240,
        "eval.shard": "eval.jsonl",
    }

    def literal(value: object) -> str:
        return f'"{value}"' if isinstance(value, str) else str(value).lower()

    return " ".join(f"{key}={literal(value)}" for key, value in given.items())


def test_two_sites_train_a_whole_network_over_grpc(tmp_path: Path, scenes: Path) -> None:
    run_dir, cache = tmp_path / "run", tmp_path / "cache"
    with Deployment(tmp_path / "net") as net:
        net.superlink()
        for i in range(SITES):
            start_warm_site(net, f"site-{i}", f"city-{i}", scenes / f"site-{i}.jsonl", cache / str(i))
        found = net.wait(net.submit(run_config(scenes, run_dir)), 480)
        assert found["status"] == "finished:completed", net.everything()
    (line,) = read_metrics(run_dir)
    assert line["sites"] == ["city-0", "city-1"] and line["quarantined"] == {}
    assert isinstance(line["miou"], float) and 0 < line["miou"] < 1
    saved = load_checkpoint(run_dir)
    model = build_network(saved.channels, saved.config.network, saved.config.seed)
    weights, statistics = network_to_arrays(model)
    start = weights | statistics
    assert saved.head.keys() == start.keys() and saved.centroids.size == 0
    moved = [key for key in start if not np.array_equal(start[key], saved.head[key])]
    assert len(moved) > len(start) / 2
    size = sum(array.nbytes for array in saved.head.values())
    assert size < line["bytes_up"]["city-0"] < 1.02 * size
    text = (cache / "0" / "state" / "city-0" / "egress.jsonl").read_text()
    ledger = [json.loads(entry) for entry in text.splitlines()]
    assert [entry["action"] for entry in ledger] == ["query.hello", "train"]
    assert set(ledger[1]["bytes"]) == {"weights", "statistics", "metrics", "facts"}
    assert ledger[1]["total"] == line["bytes_up"]["city-0"]
