"""Is clustering by direction exact, deterministic, and the same however the points are split?"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.clustering.kmeans import (
    assign,
    expectation,
    farthest_first,
    maximisation,
    plus_plus,
    spherical_kmeans,
    unit_rows,
)
from common.errors import UserError


def blobs(seed: int = 0, modes: int = 4, per_mode: int = 40, dim: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Directions around well-separated axes, with lengths that say nothing."""
    generator = np.random.default_rng(seed)
    truth = np.repeat(np.arange(modes), per_mode)
    points = np.eye(modes, dim)[truth] + 0.1 * generator.standard_normal((len(truth), dim))
    return points * generator.uniform(0.1, 10, (len(truth), 1)), truth


def slow_sums(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The E-step as nested loops."""
    sums, counts = np.zeros_like(centres, dtype=float), np.zeros(len(centres))
    for point in points:
        direction = point / np.linalg.norm(point)
        cosines = [float(direction @ (c / np.linalg.norm(c))) for c in centres]
        winner = int(np.argmax(cosines))
        sums[winner] += direction
        counts[winner] += 1
    return sums, counts


def test_expectation_equals_the_slow_loop() -> None:
    generator = np.random.default_rng(1)
    points, centres = generator.standard_normal((50, 5)), generator.standard_normal((7, 5))
    found = expectation(points, centres)
    sums, counts = slow_sums(points, centres)
    np.testing.assert_allclose(found.sums, sums, atol=1e-12)
    np.testing.assert_array_equal(found.weights, counts)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    clusters=st.integers(1, 6),
)
def test_lloyd_by_sums_over_any_split_equals_pooled(seed: int, cuts: list[int], clusters: int) -> None:
    generator = np.random.default_rng(seed)
    points = generator.standard_normal((60, 4))
    pooled = split = generator.standard_normal((clusters, 4))
    bounds = [0, *sorted(cuts), 60]
    for _ in range(4):
        pooled = maximisation(expectation(points, pooled).sums, pooled)
        parts = [expectation(points[a:b], split).sums for a, b in itertools.pairwise(bounds)]
        split = maximisation(sum(parts), split)
    np.testing.assert_allclose(split, pooled, atol=1e-6)


def test_weights_count_points_several_times() -> None:
    points, _ = blobs()
    weights = np.random.default_rng(3).integers(0, 4, len(points))
    start = points[::40]
    repeated = spherical_kmeans(np.repeat(points, weights, axis=0), 4, 0, start=start)
    weighted = spherical_kmeans(points, 4, 0, start=start, weights=weights)
    np.testing.assert_allclose(weighted.centres, repeated.centres, atol=1e-10)
    assert weighted.mean_cosine == pytest.approx(repeated.mean_cosine)


def test_finds_separated_modes_whatever_the_lengths() -> None:
    points, truth = blobs()
    found = spherical_kmeans(points, 4, 0)
    for mode in range(4):
        assert len(set(found.labels[truth == mode])) == 1
    assert len(set(found.labels)) == 4
    np.testing.assert_allclose(np.linalg.norm(found.centres, axis=1), 1)


def test_same_seed_same_result_and_scale_does_not_matter() -> None:
    generator = np.random.default_rng(5)
    points = generator.standard_normal((80, 5))
    first, again = (spherical_kmeans(points, 6, 3) for _ in range(2))
    np.testing.assert_array_equal(first.centres, again.centres)
    scaled = spherical_kmeans(points * 4.0, 6, 3)
    np.testing.assert_allclose(scaled.centres, first.centres, atol=1e-12)


def test_value_never_falls_and_labels_fit_the_centres() -> None:
    points = np.random.default_rng(6).standard_normal((100, 4))
    start = points[:5]
    values = [spherical_kmeans(points, 5, 0, start=start, iterations=n).mean_cosine for n in range(8)]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))
    assert values[-1] > values[0] + 0.01
    found = spherical_kmeans(points, 5, 0, start=start)
    labels, cosines = assign(points, found.centres)
    np.testing.assert_array_equal(labels, found.labels)
    assert found.mean_cosine == pytest.approx(cosines.mean())


def test_as_good_as_sklearn_on_unit_vectors_from_the_same_start() -> None:
    from sklearn.cluster import KMeans

    points = unit_rows(blobs(seed=2)[0])
    start = points[[0, 50, 90, 130]]
    ours = spherical_kmeans(points, 4, 0, start=start)
    theirs = KMeans(4, init=start, n_init=1).fit(points)
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    np.testing.assert_allclose(ours.centres, unit_rows(theirs.cluster_centers_), atol=1e-6)


def test_an_empty_cluster_moves_to_the_worst_represented_point() -> None:
    points = np.array([[1.0, 0.0], [0.99, 0.01], [0.0, 1.0]])
    found = spherical_kmeans(points, 2, 0, start=np.array([[1.0, 0.0], [-1.0, -1.0]]))
    assert sorted(np.bincount(found.labels, minlength=2)) == [1, 2]
    assert found.labels[0] == found.labels[1] != found.labels[2]


def test_fewer_directions_than_clusters_still_ends() -> None:
    found = spherical_kmeans(np.tile([[0.0, 2.0]], (5, 1)), 3, 0)
    assert found.mean_cosine == pytest.approx(1)


def test_empty_cluster_keeps_its_centre_in_a_federated_step() -> None:
    previous = np.array([[3.0, 0.0], [0.0, -5.0]])
    found = maximisation(expectation(np.array([[1.0, 0.1]]), previous).sums, previous)
    np.testing.assert_allclose(found[1], [0, -1])


def brute_force_maximin(rows: np.ndarray, count: int, first: int) -> list[int]:
    selected = [first]
    while len(selected) < count:
        gaps = [min(float(np.linalg.norm(row - rows[s])) for s in selected) for row in rows]
        selected.append(int(np.argmax(gaps)))
    return selected


@pytest.mark.parametrize("spherical", [False, True])
def test_maximin_equals_brute_force(spherical: bool) -> None:
    rows = np.random.default_rng(8).standard_normal((40, 3)) * 5
    expected = brute_force_maximin(unit_rows(rows) if spherical else rows, 9, 4)
    assert farthest_first(rows, 9, first=4, spherical=spherical).tolist() == expected


def test_maximin_by_hand() -> None:
    line = np.array([[0.0], [1.0], [4.0], [10.0], [6.0]])
    # 0, then the farthest (10); gaps to {0, 10} are 1, 4, 4: the first of the two; then 1 beside 6 - 4 = 2
    assert farthest_first(line, 4).tolist() == [0, 3, 2, 4]


def test_lengths_matter_to_raw_maximin_only() -> None:
    rows = np.array([[1.0, 0.0], [50.0, 0.0], [0.0, 1.0]])
    assert farthest_first(rows, 2).tolist() == [0, 1]
    assert farthest_first(rows, 2, spherical=True).tolist() == [0, 2]


def test_plus_plus_never_takes_weightless_or_selected_rows() -> None:
    generator = np.random.default_rng(0)
    rows = np.eye(6)
    weights = np.array([1.0, 1, 1, 1, 0, 0])
    assert sorted(plus_plus(rows, 4, generator, weights)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("points", "clusters", "weights", "message"),
    [
        (np.eye(3), 4, None, "4 clusters were asked for but there are 3"),
        (np.eye(3), 3, [1, 1, 0], "there are 2 points"),
        (np.eye(3), 2, [1, 1], "Weights"),
        (np.eye(3), 2, [1, 1, -1], "Weights"),
        (np.array([[1.0, np.nan], [1.0, 0.0]]), 2, None, "NaN"),
    ],
)
def test_bad_input_is_refused(
    points: np.ndarray, clusters: int, weights: list[float] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        spherical_kmeans(points, clusters, 0, weights=weights)
