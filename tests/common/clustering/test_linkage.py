"""Joining of clusters against scipy's average linkage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from common.clustering.linkage import contexts, join_clusters
from common.errors import UserError


def directions(count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, 6))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(((first[:, None] == first) == (second[:, None] == second)).all())


@pytest.mark.parametrize("clusters", [2, 5, 11])
def test_groups_are_those_of_average_linkage(clusters: int) -> None:
    rows = directions(40)
    expected = fcluster(linkage(pdist(rows) ** 2, "average"), clusters, "maxclust")
    found = join_clusters(rows * 7, clusters)  # lengths mean nothing
    assert same_partition(found, expected)
    assert sorted(set(found.tolist())) == list(range(clusters))
    firsts = [int(np.flatnonzero(found == group)[0]) for group in range(clusters)]
    assert firsts == sorted(firsts)


def test_clusters_without_patches_join_their_nearest_one_and_decide_nothing() -> None:
    rows = directions(12, seed=1)
    used = np.ones(12, dtype=bool)
    used[[3, 7]] = False
    found = join_clusters(rows, 4, used)
    alone = join_clusters(rows[used], 4)
    assert same_partition(found[used], alone)
    for index in (3, 7):
        nearest = int((rows[used] @ rows[index]).argmax())
        assert found[index] == found[used][nearest]


def test_too_few_directions_are_refused_with_both_numbers() -> None:
    rows = directions(5)
    rows[1:] = 0
    with pytest.raises(UserError, match=r"1 of 5 .*model\.clusters = 3.*centroids\.over"):
        join_clusters(rows, 3)


def test_contexts_join_what_lies_beside_the_same_things() -> None:
    """Four clusters alike in distance: the two that always lie beside the fifth are joined."""
    rows = np.eye(5)
    beside = np.zeros((5, 5), dtype=np.int64)
    for a, b in ((0, 4), (2, 4), (1, 1), (3, 3)):
        beside[a, b] = beside[b, a] = 10
    found = join_clusters(rows, 4, adjacency=beside)
    assert found[0] == found[2]
    assert len(set(found.tolist())) == 4
    np.testing.assert_allclose(contexts(rows, beside)[0], rows[4])
    np.testing.assert_array_equal(join_clusters(rows, 3, adjacency=0 * beside), join_clusters(rows, 3))
