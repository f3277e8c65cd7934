"""A tiny federation on synthetic scenes that runs inside the test's process."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from client.app import app as client_app
from common.evaluation.score import unsealed_line
from common.settings.load import load_config
from common.settings.schema import RunConfig
from common.wire import Arrays
from tests.support.local_grid import LocalGrid

TINY: dict[str, Any] = {
    "model.weights": "random",
    "model.height": 65,
    "model.width": 97,
    "model.clusters": 8,
    "model.dim": 16,
    "rounds": 3,
    "local.steps": 2,
    "local.batch": 4,
    "local.neighbours": 2,
    "eval.shard": "eval.jsonl",
    "sites.wait-seconds": 1,
    "sites.deadline-seconds": 5,
    "privacy.minimum-images": 0,
}


def dotted(name: str) -> str:
    """Turn a Python keyword into a settings key."""
    return name.replace("__", ".").replace("_", "-")


def tiny_config(shards: Path, run_dir: Path, sites: int, **settings: Any) -> RunConfig:
    """Return the smallest useful settings; ``local__keep_optimizer`` stands for ``local.keep-optimizer``."""
    given = {dotted(key): value for key, value in settings.items()}
    base = {"simulation.shards": str(shards), "run-dir": str(run_dir), "sites.expected": sites}
    return load_config(TINY | base | given)


def local_grid(sites: int, shuffle: int = 0) -> LocalGrid:
    """Return a grid of ``sites`` simulated sites with node ids that follow from ``shuffle``."""
    ids = random.Random(shuffle).sample(range(2, 10_000), sites)
    return LocalGrid(
        client_app, {node: {"partition-id": i, "num-partitions": sites} for i, node in enumerate(ids)}
    )


def named_grid(names: Sequence[str], shards: Path, cache: Path) -> LocalGrid:
    """Return a grid whose sites know their names and shards, as those of a deployment do."""
    nodes = {
        100 + index: {
            "site": name,
            "shard": str(shards / f"site-{index}.jsonl"),
            "cache": str(cache / name),
            "threads": 1,
        }
        for index, name in enumerate(names)
    }
    return LocalGrid(client_app, nodes)


TINY_NETWORK: dict[str, Any] = {
    "task": "supervised",
    "rounds": 2,
    "network.weights": "random",
    "transforms.height": 64,
    "transforms.width": 64,
    "sgd.lr": 0.01,
    "local.steps": 1,
    "local.batch": 2,
    "sites.wait-seconds": 1,
    "sites.deadline-seconds": 60,
}

TINY_STYLE: dict[str, Any] = {"style.height": 64, "style.width": 64}
TINY_SOURCE: dict[str, Any] = {"source.shard": "eval.jsonl", "source.steps": 2, "source.batch": 2}


def network_config(shards: Path, folder: Path, sites: int = 4, **settings: Any) -> RunConfig:
    """Return the smallest useful settings for a whole network; run directory and sites' state are in ``folder``.

    Those of styles and source are there where they act: elsewhere a run refuses them.
    """
    given = {dotted(key): value for key, value in settings.items()}
    base = {"simulation.shards": str(shards), "simulation.cache": str(folder / "cache")}
    base |= {"run-dir": str(folder / "run")}
    adapts = given.get("task") == "adaptation"
    base |= TINY_SOURCE if adapts else {}
    base |= TINY_STYLE if adapts or given.get("clusters.layers", "none") != "none" else {}
    return load_config(TINY_NETWORK | base | {"sites.expected": sites} | given)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics that a run has written so far."""
    path = run_dir / "metrics.jsonl"
    return [unsealed_line(line) for line in path.read_text().splitlines()] if path.is_file() else []


def last_hash(run_dir: Path) -> str:
    """Return the hash of a run's last checkpoint."""
    return str(metrics(run_dir)[-1]["checkpoint_sha256"])


def same_arrays(one: Arrays, other: Arrays) -> bool:
    """Tell whether two models have the same arrays, bit for bit."""
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
