"""Runs of a real deployment: their settings in Flower's words, what they left, and the same run in one process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.loop.run import run
from tests.support.federation import TINY, dotted, metrics, named_grid, tiny_config

SITES = 3
NAMES = tuple(f"hospital-{index}" for index in range(SITES))
"""The sites of the deployment that several files share."""


def run_config(shards: Path, run_dir: Path, base: Mapping[str, Any] = TINY, **settings: object) -> str:
    """Write Flower's ``key=value`` words for a tiny federation; ``a__b_c`` stands for ``a.b-c``."""
    given = {
        **base,
        "simulation.shards": str(shards),
        "run-dir": str(run_dir),
        "sites.expected": SITES,
        "sites.minimum": 1,
        "sites.wait-seconds": 180,
        "sites.deadline-seconds": 240,  # of machines in use: nobody waits for it where nothing is wrong
        **{dotted(key): value for key, value in settings.items()},
    }

    def literal(value: object) -> str:
        return f'"{value}"' if isinstance(value, str) else str(value).lower()

    return " ".join(f"{key}={literal(value)}" for key, value in given.items())


def in_one_process(
    scenes: Path, folder: Path, names: Sequence[str] = NAMES, **settings: Any
) -> list[dict[str, Any]]:
    """Return the metrics of the same sites' run without a network."""
    config = tiny_config(scenes, folder / "run", len(names), **settings)
    return metrics(run(named_grid(names, scenes, folder / "cache"), config))


def check_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Check that two runs ended with the same model, scored and paid for the same."""
    assert len(found) == len(expected)
    for key in ("checkpoint_sha256", "miou", "loss", "bytes_up"):
        assert [line[key] for line in found] == [line[key] for line in expected], key


def egress(cache: Path) -> list[dict[str, Any]]:
    """Return the ledger of the one site whose cache this is; empty before its first message."""
    paths = list((cache / "state").glob("*/egress.jsonl"))
    assert len(paths) <= 1, paths
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]
