"""Does nothing of the server grow with the rounds, while sites die, come back and are slow?"""

from __future__ import annotations

import gc
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import server.run_dir
from common import wire
from common.settings.load import from_wire
from server.loop.run import run
from tests.conftest import ROOT
from tests.support.federation import tiny_config

sys.path.insert(0, str(ROOT / "benchmarks"))

import long_run

pytestmark = pytest.mark.slow

SITES = 12
ROUNDS = 13
"""Memory of rounds 3 to 7 is compared with that of 9 to 13: one kept reply a round shows six times over."""
REPLY_BYTES = 700_000
"""What one site sends in a round here; of everything that is kept by mistake the smallest."""


def echo_app() -> ClientApp:
    """Answer with what was sent: real messages, without the work."""
    app = ClientApp()

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        # five images of 3 x 4 codes: the counts below are of 60
        facts = {"images": 5, "channels": 416, "grid-height": 3, "grid-width": 4}
        return reply(message, context, {}, {}, facts)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        task = wire.decode_task(message)
        random = np.random.default_rng(task.round)
        step = from_wire(task.settings).local.lr
        head = {
            key: value + random.uniform(-step, step, value.shape).astype(np.float32)
            for key, value in task.groups["head"].items()
        }
        centroids = task.groups["centroids"]["centroids"]
        groups = {
            "head": head,
            "centroids": {"centroids": centroids, "counts": np.bincount(np.arange(60) % len(centroids))},
        }
        return reply(message, context, groups, {"loss": 1.0}, {"images": 5, "batches": 2})

    def reply(
        message: Message, context: Context, groups: wire.Groups, metrics: dict[str, float], facts: Any
    ) -> Message:
        task, name = wire.decode_task(message), str(context.node_config["name"])
        update = wire.Update(name, "ab" * 32, groups, metrics, facts, round=task.round, run_key=task.run_key)
        return Message(wire.encode_update(update, "float32"), reply_to=message)

    return app


def federation(begin: Any, churn: long_run.Churn) -> long_run.ChurningGrid:
    sites = {f"site-{index}": {"name": f"site-{index}"} for index in range(SITES)}
    return long_run.ChurningGrid(echo_app(), sites, churn, begin)


def config(scenes: Path, run_dir: Path, rounds: int) -> Any:
    given = {"preset": "fuss-clean", "rounds": rounds, "eval__shard": "", "checkpoint__keep": 2}
    return tiny_config(scenes, run_dir, SITES, sites__per_round=5, **given)


def test_memory_logs_and_checkpoints_do_not_grow_with_the_rounds(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.run_dir, "LOG_BYTES", 1000)
    held: dict[int, int] = {}

    def begin(number: int) -> None:
        gc.collect()
        held[number] = tracemalloc.get_traced_memory()[0]

    grid = federation(begin, long_run.Churn(seed=1, dies=0.2, slow=0.2))
    tracemalloc.start()
    try:
        run_dir = run(grid, config(scenes, tmp_path / "run", ROUNDS))
    finally:
        tracemalloc.stop()
    assert grid.lost["dies"] > 5 and grid.lost["slow"] > 5
    # the churn changes how many replies a round has: compare the least of early rounds with that of late ones
    early, late = (min(held[n] for n in held if low <= n < low + 5) for low in (3, 9))
    assert late - early < REPLY_BYTES / 4, held
    lines = [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, ROUNDS + 1))
    assert all(len(line["sites"]) + len(line["quarantined"]) == 5 for line in lines)
    assert sum(len(line["quarantined"]) for line in lines) == sum(grid.lost.values())
    logs = [path.stat().st_size for path in run_dir.glob("log.txt*")]
    assert len(logs) == 4 and max(logs) <= 1000
    kept = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert kept == {
        f"round-{number:04}.{kind}" for number in (ROUNDS - 1, ROUNDS) for kind in ("json", "safetensors")
    }


def test_the_same_seed_draws_the_same_deaths(tmp_path: Path, scenes: Path) -> None:
    hashes = []
    for name in ("one", "two"):
        grid = federation(lambda number: None, long_run.Churn(seed=2))
        run_dir = run(grid, config(scenes, tmp_path / name, 4))
        hashes.append(
            json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["checkpoint_sha256"]
        )
    assert hashes[0] == hashes[1]
