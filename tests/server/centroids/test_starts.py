"""Several starts: each is its own k-means, the most compact is the model, and its clusters are joined."""

from __future__ import annotations

import numpy as np

from client.statistics import spherical_sums
from common.clustering.linkage import join_clusters
from common.settings.load import load_config
from server.centroids.base import SiteRows, directions
from server.centroids.lloyd import merge_lloyd
from server.centroids.starts import pass_of_starts

CONFIG = load_config({"model.clusters": 2, "centroids.over": 4, "centroids.starts": 3})


def points(count: int, seed: int) -> np.ndarray:
    return np.asarray(directions(np.random.default_rng(seed).standard_normal((count, 5)) + 0.5))


def sent(data: np.ndarray, starts: np.ndarray) -> tuple[SiteRows, np.ndarray]:
    import torch

    flat = torch.from_numpy(starts.reshape(-1, 5).astype(np.float64))
    found = spherical_sums(torch.from_numpy(data), flat, starts=len(starts))
    return SiteRows(found.sums, found.counts), found.cosines


def test_a_pass_of_all_starts_is_k_means_of_each_over_all_sites() -> None:
    sites = {"a": points(40, 0), "b": points(25, 1)}
    starts = directions(np.random.default_rng(2).standard_normal((3, 4, 5)))
    rows = {name: sent(data, starts) for name, data in sites.items()}
    found = pass_of_starts(
        starts,
        {n: r for n, (r, _) in rows.items()},
        {n: c for n, (_, c) in rows.items()},
        merge_lloyd,
        CONFIG,
    )
    pooled = np.concatenate(list(sites.values()))
    for index, start in enumerate(starts):
        similar = pooled @ start.T
        nearest = similar.argmax(axis=1)
        assert np.isclose(found.mean_cosines[index], similar.max(axis=1).mean(), rtol=1e-12)
        for cluster in range(4):
            members = pooled[nearest == cluster]
            if len(members):
                np.testing.assert_allclose(
                    directions(found.starts[index][cluster]), directions(members.sum(axis=0)), atol=1e-6
                )
    assert found.best == int(found.mean_cosines.argmax())
    np.testing.assert_array_equal(found.groups, join_clusters(directions(found.starts[found.best]), 2))


def test_one_start_of_as_many_clusters_is_plain_k_means() -> None:
    config = load_config({"model.clusters": 4, "centroids.over": 0})
    data, start = points(30, 3), directions(np.random.default_rng(4).standard_normal((1, 4, 5)))
    rows, cosines = sent(data, start)
    found = pass_of_starts(start, {"a": rows}, {"a": cosines}, merge_lloyd, config)
    np.testing.assert_array_equal(found.groups, np.arange(4))
    assert found.best == 0
