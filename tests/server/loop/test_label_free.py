"""A run of the label-free pipeline: federated equals pooled, the order of phases, resume, and what follows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message

from common.checkpoint import checkpoint_path, load_checkpoint
from common.errors import UserError
from server.commands.evaluate import evaluate_checkpoint
from server.inference.clusters import ClusterPredictor
from server.loop.run import run
from tests.support.federation import local_grid, tiny_config
from tests.support.local_grid import Answer

SITES = 4
LABEL_FREE: dict[str, Any] = {
    "loss__objective": "principal",
    "model__clusters": 5,
    "model__dim": 12,
    "codes__reach": 40.0,
    "codes__center": "auto",
    "centroids__over": 12,
    "centroids__starts": 3,
    "refine__colors": 1.0,
    "model__pixels": 65 * 97,
    "rounds": 5,
}


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four sites; read-only."""
    folder = tmp_path_factory.mktemp("label-free")
    return run(local_grid(SITES), tiny_config(scenes, folder / "run", SITES, **LABEL_FREE))


def test_federated_is_pooled_choice_of_start_included(trained: Path, scenes: Path, tmp_path: Path) -> None:
    pooled = run(local_grid(1), tiny_config(scenes, tmp_path / "pool", 1, sites__pool=True, **LABEL_FREE))
    first, second = load_checkpoint(trained), load_checkpoint(pooled)
    assert (
        first.extra.keys() == second.extra.keys() >= {"joined/groups", "joined/centered", "starts/centroids"}
    )
    for name, value in first.head.items():
        np.testing.assert_allclose(value, second.head[name], atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(first.centroids, second.centroids, atol=1e-6)
    np.testing.assert_allclose(first.extra["starts/centroids"], second.extra["starts/centroids"], atol=1e-6)
    np.testing.assert_array_equal(first.extra["joined/groups"], second.extra["joined/groups"])


def test_what_is_scored_are_the_joined_clusters(trained: Path, scenes: Path) -> None:
    saved = load_checkpoint(trained)
    assert saved.centroids.shape == (12, 12)
    assert saved.extra["joined/groups"].max() == 4
    assert len(lines(trained)[-1]["cluster_share"]) == 5
    record = evaluate_checkpoint(trained, scenes / "eval.jsonl")
    assert record["miou"] == pytest.approx(lines(trained)[-1]["miou"], abs=1e-9)
    predictor = ClusterPredictor(saved, str(trained), "cpu")
    labels = predictor.labels(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    assert labels.shape == (60, 90)
    assert labels.max() < 5
    with pytest.raises(UserError, match="label-free-student"):
        predictor.export()


def test_resumed_halfway_it_ends_the_same(trained: Path, scenes: Path, tmp_path: Path) -> None:
    half = tiny_config(scenes, tmp_path / "half", SITES, **(LABEL_FREE | {"rounds": 3}))
    stopped = run(local_grid(SITES), half)
    resumed = run(local_grid(SITES), tiny_config(scenes, stopped, SITES, resume=str(stopped), **LABEL_FREE))
    assert lines(resumed)[-1]["checkpoint_sha256"] == lines(trained)[-1]["checkpoint_sha256"]


CLOSED = pytest.mark.parametrize(
    ("objective", "settings"),
    [("spectral", {"rounds": 5}), ("principal", LABEL_FREE)],
)


@CLOSED
def test_a_first_round_that_does_not_count_is_made_up_for(
    scenes: Path, tmp_path: Path, objective: str, settings: dict[str, Any]
) -> None:
    """Phases go by what has been done, and a polish pass more: the model and score of an undisturbed run."""
    settings = settings | {"loss__objective": objective}
    whole = run(local_grid(SITES), tiny_config(scenes, tmp_path / "whole", SITES, **settings))
    grid = local_grid(SITES)
    seen: set[int] = set()

    def fails_at_first(message: Message, real: Callable[[Message], Message]) -> Answer:
        node = message.metadata.dst_node_id
        if message.metadata.message_type.startswith("train") and node not in seen:
            seen.add(node)
            return Message(Error(code=0, reason="out of order"), reply_to=message)
        return real(message)

    grid.faults = dict.fromkeys(grid.node_configs, fails_at_first)
    made_up = run(grid, tiny_config(scenes, tmp_path / "late", SITES, **settings))
    assert [line["counted"] for line in lines(made_up)] == [False] + [True] * (settings["rounds"] - 1)
    expected, found = load_checkpoint(whole), load_checkpoint(made_up)
    np.testing.assert_array_equal(found.head["linear.weight"], expected.head["linear.weight"])
    np.testing.assert_array_equal(found.centroids, expected.centroids)
    assert lines(made_up)[-1]["miou"] == lines(whole)[-1]["miou"]
    first = load_checkpoint(checkpoint_path(made_up, 1))
    assert not np.array_equal(first.head["linear.weight"], expected.head["linear.weight"])


@CLOSED
def test_a_site_that_comes_late_is_taken_into_the_projection(
    scenes: Path, tmp_path: Path, objective: str, settings: dict[str, Any]
) -> None:
    settings = settings | {"loss__objective": objective, "eval__every": 0}
    whole = run(local_grid(SITES), tiny_config(scenes, tmp_path / "whole", SITES, **settings))
    grid = local_grid(SITES)
    late = next(node for node, given in grid.node_configs.items() if given["partition-id"] == 3)
    trained: list[str] = []

    def absent_at_first(message: Message, real: Callable[[Message], Message]) -> Answer:
        trained.append(message.metadata.message_type)
        if trained.count("train") == 1 and message.metadata.message_type == "train":
            return Error(code=0, reason="not yet")
        return real(message)

    grid.faults[late] = absent_at_first
    joined = run(grid, tiny_config(scenes, tmp_path / "late", SITES, **settings))
    assert trained.count("query.sums") >= 1
    assert "taken into the projection: site-3" in (joined / "log.txt").read_text()
    expected, found = load_checkpoint(whole), load_checkpoint(joined)
    scale = np.abs(expected.head["linear.weight"]).max()
    first = load_checkpoint(checkpoint_path(joined, 1)).head["linear.weight"]
    assert np.abs(first - expected.head["linear.weight"]).max() > 0.01 * scale
    np.testing.assert_allclose(found.head["linear.weight"], expected.head["linear.weight"], atol=1e-4 * scale)
    assert lines(joined)[1]["sites"] == [f"site-{i}" for i in range(SITES)]


@CLOSED
def test_a_robust_rule_runs_where_sites_send_sums(
    scenes: Path, tmp_path: Path, objective: str, settings: dict[str, Any]
) -> None:
    settings = settings | {"loss__objective": objective, "centroids__merge": "matched-geometric", "rounds": 3}
    run_dir = run(local_grid(SITES), tiny_config(scenes, tmp_path / "run", SITES, **settings))
    assert all(line["counted"] and len(line["sites"]) == SITES for line in lines(run_dir))
    assert lines(run_dir)[-1]["miou"] > 0
