"""Do statistics of many sites become those of all their images in one place?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common.settings.load import load_config
from common.styles.clusters import StyleClusters
from common.wire import Arrays, Update
from server.states import Layout, NetworkState
from server.tasks.network_merge import merge_statistics, pooled

LAYOUT = Layout(parameters=frozenset({"conv"}), statistics=frozenset({"bn.running_mean", "bn.running_var"}))


def measured(images: np.ndarray) -> Arrays:
    """Return the moments over images and pixels of [N, C, P]."""
    return {
        "bn.running_mean": images.mean((0, 2)).astype(np.float32),
        "bn.running_var": images.var((0, 2)).astype(np.float32),
    }


def draw(seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    shift = generator.normal(size=(12, 3, 1)) * 4  # sites differ more than their pixels do
    return generator.normal(size=(12, 3, 50)) + shift


def merge(state: NetworkState, sites: dict[str, np.ndarray], layout: Layout = LAYOUT) -> NetworkState:
    updates = {name: Update(name, "", groups={"statistics": measured(part)}) for name, part in sites.items()}
    weights = {name: float(len(part)) for name, part in sites.items()}
    return merge_statistics(state, updates, weights, layout, load_config({"task": "supervised"}))


def start() -> NetworkState:
    zeros = {key: np.zeros(3, np.float32) for key in sorted(LAYOUT.statistics)}
    return NetworkState({"conv": np.full(3, 7, np.float32)} | zeros)


@pytest.mark.parametrize("cuts", [[12], [4, 8], [1, 2, 9], [3, 4, 5, 11]])
def test_any_split_gives_the_moments_of_all_images(cuts: list[int]) -> None:
    images = draw()
    parts = [part for part in np.split(images, cuts) if len(part)]
    found = merge(start(), {f"s{index}": part for index, part in enumerate(parts)})
    expected = measured(images)
    for key, value in expected.items():
        np.testing.assert_allclose(found.model[key], value, rtol=2e-6, atol=1e-6)
        assert found.model[key].dtype == np.float32
    np.testing.assert_array_equal(found.model["conv"], 7)


def test_a_mean_of_variances_is_something_else_where_sites_differ() -> None:
    """By hand: means 0 and 2, variances 1 and 3, three images against one."""
    sent = {
        "a": {"bn.running_mean": np.float32([0]), "bn.running_var": np.float32([1])},
        "b": {"bn.running_mean": np.float32([2]), "bn.running_var": np.float32([3])},
    }
    found = pooled(sent, {"a": 3.0, "b": 1.0}, load_config({"task": "supervised"}))
    assert found["bn.running_mean"] == 0.5
    assert found["bn.running_var"] == (3 * (1 + 0) + 1 * (3 + 4)) / 4 - 0.25  # not 1.5


def test_a_robust_rule_is_kept_and_no_variance_is_negative() -> None:
    config = load_config({"task": "supervised", "aggregation.rule": "median"})
    sent = {
        name: {"bn.running_mean": np.float32([mean]), "bn.running_var": np.float32([variance])}
        for name, mean, variance in (("a", 1, 1), ("b", -3, 0), ("c", 1e6, 1e9), ("d", 3, 0), ("e", 3, 0))
    }
    found = pooled(sent, dict.fromkeys(sent, 1.0), config)
    assert (
        found["bn.running_mean"] == 3 and found["bn.running_var"] == 0
    )  # second moments 2 9 9 9 and a huge one


def test_a_cluster_gets_those_of_its_sites_and_keeps_its_own_when_nobody_answered() -> None:
    layout = Layout(LAYOUT.parameters, LAYOUT.statistics, cluster=LAYOUT.statistics)
    grouping = StyleClusters(np.zeros((3, 2)), {"a": 0, "b": 0, "c": 1, "away": 2})
    state = start().with_clusters(grouping, layout)
    parts = dict(zip("abc", np.split(draw(3), 3), strict=True))
    found = merge(state, parts, layout)
    together: dict[int, Any] = {0: np.concatenate([parts["a"], parts["b"]]), 1: parts["c"]}
    for cluster, images in together.items():
        for key, value in measured(images).items():
            np.testing.assert_allclose(found.clusters[cluster][key], value, rtol=2e-6, atol=1e-6)
    assert not any(value.any() for value in found.clusters[2].values())
    for key, value in measured(draw(3)).items():  # whom a newcomer starts from
        np.testing.assert_allclose(found.model[key], value, rtol=2e-6, atol=1e-6)
