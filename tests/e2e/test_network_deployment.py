"""Does a whole network travel over gRPC between real processes, there and back, in one round?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.checkpoint import load_checkpoint
from common.models.network import build_network, network_to_arrays
from server.run_dir import FIRST_STAGE
from tests.support.deployed_runs import NAMES, egress, run_config
from tests.support.deployment import Deployment
from tests.support.federation import TINY_NETWORK, metrics

pytestmark = pytest.mark.net


def test_sites_train_a_whole_network_over_grpc(
    net: Deployment, caches: Path, tmp_path: Path, scenes: Path
) -> None:
    run_dir, before = tmp_path / "run", len(egress(caches / NAMES[0]))
    settings = {"rounds": 1, "eval__shard": "eval.jsonl", "sites__deadline_seconds": 240}
    found = net.wait(net.submit(run_config(scenes, run_dir, TINY_NETWORK, **settings)), 480)
    assert found == "finished:completed", net.everything()
    (line,) = metrics(run_dir)
    assert line["sites"] == list(NAMES) and line["quarantined"] == {}
    assert isinstance(line["miou"], float) and 0 < line["miou"] < 1
    saved = load_checkpoint(run_dir)
    model = build_network(saved.channels, saved.config.network, saved.config.seed)
    weights, statistics = network_to_arrays(model)
    start = weights | statistics
    assert saved.head.keys() == start.keys() and saved.centroids.size == 0
    moved = [key for key in start if not np.array_equal(start[key], saved.head[key])]
    assert len(moved) > len(start) / 2
    size = sum(array.nbytes for array in saved.head.values())
    assert size < line["bytes_up"][NAMES[0]] < 1.02 * size
    ledger = egress(caches / NAMES[0])[before:]
    assert [entry["action"] for entry in ledger] == ["query.hello", "train"]
    assert set(ledger[1]["bytes"]) == {"weights", "statistics", "metrics", "facts"}
    assert ledger[1]["total"] == line["bytes_up"][NAMES[0]]


def test_both_stages_of_a_student_go_over_grpc(
    net: Deployment, caches: Path, tmp_path: Path, scenes: Path
) -> None:
    run_dir, before = tmp_path / "run", len(egress(caches / NAMES[0]))
    settings = {"task": "student", "rounds": 1, "student__first_rounds": 2, "network__architecture": "small"}
    settings |= {"model__weights": "random", "model__height": 65, "model__width": 97, "model__dim": 8}
    settings |= {"model__clusters": 4, "eval__shard": "eval.jsonl", "sites__deadline_seconds": 240}
    settings |= {"privacy__minimum_images": 0}  # ten images a site
    found = net.wait(net.submit(run_config(scenes, run_dir, TINY_NETWORK, **settings)), 480)
    assert found == "finished:completed", net.everything()
    (line,) = metrics(run_dir)
    assert line["sites"] == list(NAMES) and line["quarantined"] == {}
    assert [entry["round"] for entry in metrics(run_dir / FIRST_STAGE)] == [1, 2]
    sent = egress(caches / NAMES[0])[before:]
    assert [entry["action"] for entry in sent][-3:] == ["query.hello", "query.sums", "train"]
    assert set(sent[-2]["bytes"]) == {
        "masks",
        "metrics",
        "facts",
    }  # numbers of pixels by cluster, no image, no mask
