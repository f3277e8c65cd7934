"""Do sums of many sites give the projection of all their images, and k-means a start without a draw?"""

from __future__ import annotations

import numpy as np
import pytest

from common.clustering.spectral import patch_scatter
from common.errors import UserError
from common.features.source import Features
from common.losses.spectral import axis_directions
from common.settings.load import load_config
from common.wire import Update
from server.states import ModelState
from server.tasks.base import load_settings
from server.tasks.unsupervised_merge import solve

GRID = (4, 5)


def update(name: str, seed: int, images: int = 5, channels: int = 6) -> tuple[Update, Features]:
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(images, 20, channels)).astype(np.float32) * (1 + seed)
    features = Features.from_arrays(tokens, GRID, colours=rng.uniform(size=(images, 20, 3)))
    return Update(name, "w", {"scatter": patch_scatter(features, 0.1).to_arrays()}), features


def state(channels: int = 6, dim: int = 3) -> ModelState:
    head = {"linear.weight": np.zeros((dim, channels), np.float32), "linear.bias": np.zeros(dim, np.float32)}
    return ModelState(head, np.zeros((4, dim), np.float32))


def config(**settings: object):  # type: ignore[no-untyped-def]
    return load_config(
        {"model.dim": 3, "model.clusters": 4}, {k.replace("_", "."): v for k, v in settings.items()}
    )


def test_sites_together_solve_what_one_site_with_all_images_solves() -> None:
    one, first = update("a", 0)
    two, second = update("b", 1, images=8)
    pooled = Features.from_arrays(
        np.concatenate([first.tokens, second.tokens]),
        GRID,
        colours=np.concatenate([f.colours(list(range(len(f)))).numpy() for f in (first, second)]),
    )
    whole = Update("all", "w", {"scatter": patch_scatter(pooled, 0.1).to_arrays()})
    apart = solve(state(), {"a": one, "b": two}, config())
    together = solve(state(), {"all": whole}, config())
    for key, value in apart.head.items():
        assert np.allclose(value, together.head[key], atol=1e-4)
    assert np.array_equal(apart.centroids, together.centroids)


def test_the_order_of_replies_changes_no_bit() -> None:
    one, two = update("a", 0)[0], update("b", 1)[0]
    first = solve(state(), {"a": one, "b": two}, config()).head
    second = solve(state(), {"b": two, "a": one}, config()).head
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_local_only_gives_every_site_its_own_projection() -> None:
    updates = {"a": update("a", 0)[0], "b": update("b", 1)[0]}
    found = solve(state(), updates, config(centroids_share="none"))
    assert np.array_equal(found.head["linear.weight"], np.zeros((3, 6)))
    alone = solve(state(), {"a": updates["a"]}, config())
    assert np.array_equal(found.private["a"]["head"]["linear.weight"], alone.head["linear.weight"])
    assert not np.allclose(
        found.private["a"]["head"]["linear.weight"], found.private["b"]["head"]["linear.weight"]
    )


@pytest.mark.parametrize("clusters", [2, 5, 6, 10, 18])
def test_starts_are_distinct_unit_directions(clusters: int) -> None:
    found = axis_directions(clusters, 3)
    assert found.shape == (clusters, 3)
    assert np.allclose(np.linalg.norm(found, axis=1), 1.0)
    assert np.max(found @ found.T - 2 * np.eye(clusters)) < 0.99
    assert np.array_equal(found[:2], [[1, 0, 0], [-1, 0, 0]])


def test_more_clusters_than_directions_are_refused_with_the_settings() -> None:
    with pytest.raises(UserError, match=r"raise model\.dim"):
        load_settings({"model.dim": 3, "model.clusters": 19})
