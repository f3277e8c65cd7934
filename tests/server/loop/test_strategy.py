"""Does the strategy keep Flower's contract: messages out of `configure_train`, raw replies into `aggregate_train`?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Error

from common.checkpoint import load_checkpoint
from server.loop.run import open_run, run
from server.loop.strategy import SegmentationStrategy
from tests.support.federation import local_grid, tiny_config
from tests.support.local_grid import LocalGrid

SITES = 3
SETTINGS: dict[str, Any] = {"preset": "fuss-ref", "rounds": 1, "eval__shard": "", "sites__minimum": 2}


def opened(scenes: Path, folder: Path) -> tuple[SegmentationStrategy, LocalGrid]:
    """Return the strategy of a run that has greeted its sites, and its grid."""
    grid = local_grid(SITES)
    folder.mkdir()
    return open_run(grid, tiny_config(scenes, folder, SITES, **SETTINGS), folder, None), grid


def test_raw_replies_of_flower_become_the_model_that_a_run_makes(tmp_path: Path, scenes: Path) -> None:
    strategy, grid = opened(scenes, tmp_path / "by-hand")
    replies = grid.send_and_receive(list(strategy.configure_train(1, None, None, grid)))
    merged, metrics = strategy.aggregate_train(1, reversed(replies))
    assert merged is not None and metrics is None
    expected = load_checkpoint(
        run(local_grid(SITES), tiny_config(scenes, tmp_path / "run", SITES, **SETTINGS))
    )
    assert {name: array.numpy().tobytes() for name, array in merged.items()} == {
        name: array.tobytes() for name, array in expected.head.items()
    }
    np.testing.assert_array_equal(strategy.state.centroids, expected.centroids)


def test_raw_replies_that_fail_are_left_out_and_too_few_change_nothing(tmp_path: Path, scenes: Path) -> None:
    strategy, grid = opened(scenes, tmp_path / "by-hand")
    first = grid.get_node_ids()[0]
    grid.faults[first] = lambda message, real: Error(8, "killed")
    before = strategy.state
    lost = grid.send_and_receive(list(strategy.configure_train(1, None, None, grid)))
    assert strategy.aggregate_train(1, lost[:2]) == (None, None) and strategy.state is before
    merged, _ = strategy.aggregate_train(1, lost)
    assert merged is not None and strategy.state is not before
