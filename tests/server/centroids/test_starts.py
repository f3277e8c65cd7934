"""Several starts: each is its own k-means, its clusters are joined, and two figures choose among them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from client.statistics import image_shares, neighbor_counts, pair_overlaps, sums_of_starts
from common.clustering.linkage import join_clusters
from common.features.source import Features
from common.models.head import SegmentationHead
from common.settings.load import load_config
from common.wire import Arrays
from server.centroids.base import directions
from server.centroids.lloyd import merge_lloyd
from server.centroids.starts import (
    MOST_TOLD,
    agreement_of,
    chosen_start,
    neighbors,
    pass_of_starts,
    told_of_images,
)

CONFIG = load_config(
    {"model.clusters": 2, "model.dim": 5, "centroids.over": 4, "centroids.starts": 2, "codes.center": "auto"}
)
GRID = (2, 5)


def tokens(images: int, seed: int) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((images, 10, 5)) + 0.5
    return made.astype(np.float32)


def identity() -> SegmentationHead:
    head = SegmentationHead(5, 5, 0.0, nonlinear=False)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(5))
        head.linear.bias.zero_()
    return head


def sent(data: np.ndarray, starts: np.ndarray, groups: np.ndarray) -> Arrays:
    arrays = {"centroids": starts.reshape(-1, 5), "groups": groups.reshape(-1)}
    return sums_of_starts(Features.from_arrays(data, GRID), identity(), arrays, len(starts), CONFIG)


def test_a_pass_of_all_starts_is_k_means_of_each_over_all_sites() -> None:
    sites = {"a": tokens(4, 0), "b": tokens(3, 1)}
    starts = directions(np.random.default_rng(2).standard_normal((4, 4, 5)))
    groups = np.stack([join_clusters(start, 2) for start in starts])
    found = pass_of_starts(
        starts, {name: sent(data, starts, groups) for name, data in sites.items()}, 7, merge_lloyd, CONFIG
    )
    pooled = np.concatenate(list(sites.values())).astype(np.float64)
    for index, start in enumerate(starts):
        data = (
            pooled - pooled.mean(axis=1, keepdims=True) if index >= 2 else pooled
        )  # the second half is centered
        images = np.trunc(directions(data) * 512) / 512  # the grid of the sums
        similar = images @ start.T
        nearest = similar.argmax(axis=2)
        assert found.mean_cosines[index] == pytest.approx(similar.max(axis=2).mean(), rel=1e-6)
        for cluster in range(4):
            members = images[nearest == cluster]
            if len(members):
                np.testing.assert_allclose(
                    directions(found.centroids[index][cluster]), directions(members.sum(axis=0)), atol=1e-6
                )
        beside = np.zeros((4, 4), dtype=np.int64)
        for grid in nearest.reshape(-1, *GRID):
            for first, second in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):
                np.add.at(beside, (first, second), 1)
                np.add.at(beside, (second, first), 1)
        counts = np.bincount(nearest.ravel(), minlength=4)
        expected = join_clusters(found.centroids[index], 2, counts > 0.5 / 4 * counts.sum(), beside)
        np.testing.assert_array_equal(found.groups[index], expected)
        portions = np.array([np.bincount(row, minlength=2) / 10 for row in groups[index][nearest]])
        within = np.mean([-sum(p * np.log(p) for p in row if p) for row in portions])
        whole = -sum(p * np.log(p) for p in portions.mean(axis=0) if p)
        assert found.told[index] == pytest.approx((whole - within) / whole, rel=1e-9)


def test_shares_count_the_patches_of_each_joined_cluster_in_each_image() -> None:
    cluster = torch.tensor([[[0, 0, 1], [0, 0, 0]]])  # two starts, three patches of one image
    assert image_shares(cluster, 2).tolist() == [[[2, 1], [3, 0]]]
    assert pair_overlaps(cluster, 2).tolist() == [
        [[[2, 0], [0, 1]], [[2, 0], [1, 0]]],
        [[[2, 1], [0, 0]], [[3, 0], [0, 0]]],
    ]


def test_agreement_is_the_mean_normalized_mutual_information_with_the_others() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, (3, 200))
    labels[1] = (labels[0] + 1) % 3  # the same clusters by other numbers
    overlaps = np.array(
        [[np.histogram2d(a, b, bins=3, range=[[0, 3]] * 2)[0] for b in labels] for a in labels]
    )
    scores = np.array([[normalized_mutual_info_score(a, b) for b in labels] for a in labels])
    expected = (scores.sum(axis=1) - 1) / 2
    np.testing.assert_allclose(agreement_of(overlaps), expected, rtol=1e-9)
    np.testing.assert_array_equal(agreement_of(overlaps[:1, :1]), [0.0])


def test_neighbors_are_counted_either_way_round() -> None:
    nearest = torch.tensor([[[0, 0], [1, 2]]]).unsqueeze(-1)  # pairs 0-0, 1-2 across and 0-1, 0-2 down
    found = neighbor_counts(nearest, 3).numpy()
    assert found.tolist() == [[1, 1, 1, 0, 1, 0]]  # 0-0, 0-1, 0-2, 1-1, 1-2, 2-2
    assert neighbors(found[0], 3).tolist() == [[2, 1, 1], [1, 0, 1], [1, 1, 0]]


def test_sums_of_starts_are_exact_in_any_order_and_travel_in_half_the_bytes() -> None:
    data, starts = tokens(9, 5), directions(np.random.default_rng(6).standard_normal((4, 4, 5)))
    groups = np.stack([join_clusters(start, 2) for start in starts])
    whole, part, rest = (sent(images, starts, groups)["sums"] for images in (data, data[:4], data[4:]))
    np.testing.assert_array_equal(part + rest, whole)
    np.testing.assert_array_equal(whole.astype(np.float32), whole)


def test_clusters_that_only_tell_images_apart_tell_everything_of_them() -> None:
    shares = np.array([[50.0, 50.0], [50.0, 50.0], [100.0, 0.0]])
    told = told_of_images(shares, np.array([0.0, np.log(2), 0.0]))
    np.testing.assert_allclose(told, [1.0, 0.0, 0.0], atol=1e-12)


def test_the_medoid_is_kept_and_centering_is_told_by_images() -> None:
    low, high = MOST_TOLD - 0.05, MOST_TOLD + 0.05
    assert chosen_start([0.5, 0.6, 0.9, 0.8], [high, low, 0, 0], (False, True)) == (1, False)
    assert chosen_start([0.6, 0.5, 0.8, 0.9], [high, low, 0, 0], (False, True)) == (3, True)
    assert chosen_start([0.6, 0.5], [high, high], (False,)) == (0, False)
    assert chosen_start([0.6, 0.7], [0, 0], (True,)) == (1, True)
