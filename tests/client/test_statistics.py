"""Are a site's sums exact, and do they add up over sites to what one pass over all images gives?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.statistics import ClusterSums, cluster_sums
from common.clustering.kmeans import unit_rows
from common.features.source import Features
from common.models.head import build_head, init_centroids, state_to_numpy
from common.settings.objectives import Loss
from common.settings.schema import RunConfig
from common.settings.unsupervised import Model

CONFIG = RunConfig(model=Model(dim=5, clusters=4, nonlinear=True), loss=Loss(objective="correspondence"))
GRID = (2, 3)


def tokens(images: int = 7, channels: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((images, 6, channels)).astype(np.float32)


HEAD = state_to_numpy(build_head(6, CONFIG.model, 0))
CENTROIDS = init_centroids(4, 5, 0)


def slow_codes(points: np.ndarray) -> np.ndarray:
    hidden = np.maximum(points @ HEAD["nonlinear.0.weight"].T + HEAD["nonlinear.0.bias"], 0)
    linear = points @ HEAD["linear.weight"].T + HEAD["linear.bias"]
    found: np.ndarray = linear + hidden @ HEAD["nonlinear.2.weight"].T + HEAD["nonlinear.2.bias"]
    return found


def test_sums_equal_the_slow_loop() -> None:
    data = tokens()
    found = cluster_sums(Features.from_arrays(data, GRID), HEAD, CENTROIDS, CONFIG)
    sums, counts, cosines = np.zeros((4, 5)), np.zeros(4, dtype=np.int64), np.zeros(4)
    means = unit_rows(CENTROIDS)
    for code in slow_codes(data.reshape(-1, 6)).astype(np.float64):
        direction = code / np.linalg.norm(code)
        winner = int(np.argmax(means @ direction))
        sums[winner] += direction
        counts[winner] += 1
        cosines[winner] += means[winner] @ direction
    np.testing.assert_allclose(found.sums, sums, atol=1e-5)
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-5)
    np.testing.assert_array_equal(found.counts, counts)
    assert found.sums.dtype == found.cosines.dtype == np.float64 and found.counts.dtype == np.int64
    assert found.mean_cosine == pytest.approx(cosines.sum() / 42, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(7)), cut=st.integers(1, 6))
def test_sites_add_up_to_the_pooled_shard(order: list[int], cut: int) -> None:
    data = tokens()
    pooled = cluster_sums(Features.from_arrays(data, GRID), HEAD, CENTROIDS, CONFIG)
    parts = [
        cluster_sums(Features.from_arrays(data[part], GRID), HEAD, CENTROIDS, CONFIG)
        for part in (order[:cut], order[cut:])
    ]
    total = parts[0] + parts[1]
    np.testing.assert_allclose(total.sums, pooled.sums, atol=1e-6)
    np.testing.assert_allclose(total.cosines, pooled.cosines, atol=1e-6)
    np.testing.assert_array_equal(total.counts, pooled.counts)


def test_lengths_of_centroids_do_not_matter_and_dropout_is_off() -> None:
    features = Features.from_arrays(tokens(), GRID)
    once = cluster_sums(features, HEAD, CENTROIDS, CONFIG)
    again = cluster_sums(features, HEAD, CENTROIDS * np.float32(30), CONFIG)
    np.testing.assert_allclose(once.sums, again.sums, atol=1e-6)
    assert isinstance(again, ClusterSums)


def test_broken_features_are_named() -> None:
    data = tokens()
    data[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match="images 0 to 6"):
        cluster_sums(Features.from_arrays(data, GRID), HEAD, CENTROIDS, CONFIG)
