"""Does every rule give each image to exactly one site, as it says, and the same for the same seed?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.images import view_box
from common.data.manifest import Entry
from common.errors import UserError
from partitions.rules import by_domain, characteristic_class, dirichlet, drawn_view, iid


def _covers(sites: list[list[int]], images: int) -> bool:
    return sorted(i for site in sites for i in site) == list(range(images))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 60), st.integers(0, 10**9))
def test_all_rules_partition_and_leave_no_site_empty(data: st.DataObject, images: int, seed: int) -> None:
    sites = data.draw(st.integers(1, images))
    domains = data.draw(st.lists(st.sampled_from("abcde"), min_size=images, max_size=images))
    alpha = data.draw(st.sampled_from([1e-6, 0.1, 1.0, 1e6]))
    for result in (
        iid(images, sites, seed),
        by_domain(domains, sites),
        by_domain(domains),
        dirichlet(domains, sites, alpha, seed),
    ):
        assert _covers(result, images)
        assert all(result)
        assert all(site == sorted(site) for site in result)
    assert dirichlet(domains, sites, alpha, seed) == dirichlet(domains, sites, alpha, seed)
    assert iid(images, sites, seed) == iid(images, sites, seed)


def test_iid_sizes_differ_by_at_most_one_and_follow_the_seed() -> None:
    sites = iid(100, 7, 1)
    assert {len(site) for site in sites} == {14, 15}
    assert sites != iid(100, 7, 2)


def test_one_site_per_domain_in_order_of_appearance() -> None:
    assert by_domain(["dusk", "day", "dusk", "car"]) == [[0, 2], [1], [3]]


def test_fewer_sites_group_neighbouring_domains() -> None:
    assert by_domain(list("aabbccddee"), 2) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]


def test_more_sites_split_the_largest_domain_contiguously() -> None:
    assert by_domain(["a"] * 6 + ["b"] * 3, 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert by_domain(["a"] * 6 + ["b"] * 3, 4) == [[0, 1], [2, 3], [4, 5], [6, 7, 8]]


def test_dirichlet_is_skewed_for_small_alpha_and_even_for_large() -> None:
    groups = [i % 5 for i in range(1000)]

    def mean_distance(alpha: float) -> float:
        sites = dirichlet(groups, 5, alpha, 0)
        shares = [np.bincount([groups[i] for i in site], minlength=5) / len(site) for site in sites]
        return float(np.mean([np.abs(share - 0.2).sum() / 2 for share in shares]))

    assert mean_distance(0.05) > 0.5
    assert mean_distance(1000.0) < 0.05


def test_dirichlet_draws_a_group_independently_of_other_groups() -> None:
    alone = dirichlet(["a"] * 50, 4, 1.0, 0)
    joined = dirichlet(["a"] * 50 + ["b"] * 50, 4, 1.0, 0)
    assert [[i for i in site if i < 50] for site in joined] == alone


def test_characteristic_class_is_above_the_mean_not_the_commonest() -> None:
    histograms = np.array([[90, 10, 0], [90, 0, 10], [99, 1, 0], [0, 0, 0]])
    assert characteristic_class(histograms)[:3].tolist() == [1, 2, 0]


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_alpha_has_to_be_a_positive_number(alpha: float) -> None:
    with pytest.raises(UserError, match=r"--alpha is .*; expected a number above 0"):
        dirichlet(["a", "b"], 2, alpha, 0)


def test_more_sites_than_images_are_refused() -> None:
    calls: list[Callable[[], object]] = [
        lambda: iid(3, 4, 0),
        lambda: by_domain(["a"] * 3, 4),
        lambda: dirichlet(["a"] * 3, 4, 1.0, 0),
    ]
    for call in calls:
        with pytest.raises(UserError, match="--sites is 4 but there are only 3 images"):
            call()
    with pytest.raises(UserError, match="--sites is 0; expected at least 1"):
        iid(3, 0, 0)


def test_random_crops_follow_from_seed_image_and_number() -> None:
    views = [drawn_view(seed, image, number) for seed in (0, 1) for image in ("a", "b") for number in (0, 1)]
    assert len(set(views)) == len(views) and views[0] == drawn_view(0, "a", 0)
    for view in views:
        left, top, right, bottom = view_box(view, 64, 128)
        assert (
            left >= 0
            and top >= 0
            and right <= 128
            and bottom <= 64
            and (right - left, bottom - top) == (64, 32)
        )
    entry = Entry("a.png", view=views[0])
    assert json.loads(entry.to_line())["view"] == views[0]
