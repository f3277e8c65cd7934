"""Does secure summation over real processes give the plain model, and outlive a site that is lost in the middle?"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.checkpoint import Checkpoint, load_checkpoint
from server.loop.run import run
from tests.conftest import ROOT
from tests.support.deployed_runs import NAMES, run_config
from tests.support.deployment import Deployment
from tests.support.faulty_client import write_faulty_project
from tests.support.federation import metrics, named_grid, tiny_config
from tests.support.warm import started_tasks

pytestmark = pytest.mark.net

SETTINGS: dict[str, Any] = {
    "preset": "fuss-clean",
    "centroids__merge": "lloyd",
    "rounds": 2,
    "local__steps": 5,
    "sites__expected": len(NAMES),
    "sites__wait_seconds": 180,
    "sites__deadline_seconds": 120,
}


def secure(shards: Path, run_dir: Path) -> str:
    return run_config(
        shards, run_dir, **SETTINGS, name=run_dir.name, privacy__secure_sum=True, privacy__colluders=0
    )


def plain(shards: Path, folder: Path) -> Checkpoint:
    """Return the model of the same sites in this process, each of which shows what it has."""
    config = tiny_config(shards, folder / "run", len(NAMES), **SETTINGS | {"sites__wait_seconds": 1})
    return load_checkpoint(run(named_grid(NAMES, shards, folder), config))


def check_equal(found: Checkpoint, expected: Checkpoint) -> None:
    pairs = [(found.head[name], value) for name, value in expected.head.items()]
    for one, other in [*pairs, (found.centroids, expected.centroids)]:
        assert np.abs(one - other).max() <= 1e-4 * np.abs(other).max()


def test_totals_alone_make_the_plain_model(net: Deployment, tmp_path: Path, scenes: Path) -> None:
    found = net.wait(net.submit(secure(scenes, tmp_path / "secure")), 400)
    assert found == "finished:completed", net.everything()
    assert [line["sites"] for line in metrics(tmp_path / "secure")] == [list(NAMES)] * 2
    check_equal(load_checkpoint(tmp_path / "secure"), plain(scenes, tmp_path / "plain"))


def test_a_site_that_is_lost_after_it_shared_its_secrets_costs_the_round_only_that_site(
    net: Deployment, tmp_path: Path, scenes: Path
) -> None:
    signs, lost = tmp_path / "signs", NAMES[1]
    signs.mkdir()
    write_faulty_project(ROOT, tmp_path / "project", {f"lossy/{lost}/2": "waits"}, signs)
    run_id = net.submit(secure(scenes, tmp_path / "lossy"), tmp_path / "project")
    sign, end = signs / f"reached-lossy-{lost}-2", time.monotonic() + 240
    while not sign.exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(started_tasks(net, "warm-1")[-1], signal.SIGKILL)  # keys and shares are with the others by now

    found = net.wait(run_id, 400)
    assert found == "finished:completed", net.everything()
    first, second = metrics(tmp_path / "lossy")
    assert first["sites"] == list(NAMES)
    assert second["sites"] == [NAMES[0], NAMES[2]] and second["counted"]
    assert second["quarantined"] == {lost: "its client process died"}
