"""Are sites grouped as their styles say, and does nothing but the styles decide?"""

from __future__ import annotations

import logging

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load, save

from common.errors import UserError
from common.settings.network import Clusters
from common.styles.clusters import StyleClusters, cluster_styles, purity, silhouette


def blobs(centres: int, each: int, spread: float = 1e4, seed: int = 0) -> dict[str, np.ndarray]:
    """Styles of [3, 3, 3] around ``centres`` middles of the size of real amplitudes (1e7 to 1e8)."""
    draw = np.random.default_rng(seed)
    middles = draw.uniform(1e7, 1e8, (centres, 3, 3, 3))
    return {
        f"city{i % centres}-{i // centres}": (
            middles[i % centres] + spread * draw.standard_normal((3, 3, 3))
        ).astype(np.float32)
        for i in range(centres * each)
    }


def city(site: str) -> str:
    return site.split("-")[0]


def slow_silhouette(points: np.ndarray, labels: np.ndarray) -> float:
    """Rousseeuw's definition, point by point."""
    values = []
    for i, own in enumerate(labels):
        far = [float(np.sqrt(((points[i] - other) ** 2).sum())) for other in points]
        mates = [d for j, d in enumerate(far) if labels[j] == own and j != i]
        if not mates:
            values.append(0.0)
            continue
        others = (
            [d for j, d in enumerate(far) if labels[j] == cluster] for cluster in set(labels.tolist()) - {own}
        )
        a, b = sum(mates) / len(mates), min(sum(group) / len(group) for group in others)
        values.append((b - a) / max(a, b))
    return sum(values) / len(values)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_well_separated_groups_are_found(number: int) -> None:
    styles = blobs(number, 4)
    found = cluster_styles(styles, Clusters(), seed=0)
    assert found.k == number
    assert found.note == ""
    assert purity(found.assignment, {site: city(site) for site in styles}) == 1.0
    assert max(found.silhouettes, key=lambda k: found.silhouettes[k]) == number
    assert sorted(found.silhouettes) == list(range(2, min(20, 4 * number - 1) + 1))


def test_centres_are_the_means_of_their_members_in_float64() -> None:
    styles = blobs(3, 4)
    found = cluster_styles(styles, Clusters(exact=3), seed=0)
    assert found.centres.dtype == np.float64
    for cluster, members in enumerate(found.members()):
        mean = np.mean([styles[site].astype(np.float64).ravel() for site in members], axis=0)
        assert found.centres[cluster] == pytest.approx(mean, rel=1e-12)


def test_the_silhouette_is_the_mean_of_its_definition() -> None:
    points = np.random.default_rng(1).standard_normal((9, 4))
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 2, 3])  # the last one is alone
    assert silhouette(points, labels) == pytest.approx(slow_silhouette(points, labels), abs=1e-12)


def test_neither_order_of_sites_nor_seed_nor_names_of_clusters_matter() -> None:
    styles = blobs(4, 3)
    first = cluster_styles(styles, Clusters(), seed=0)
    turned = cluster_styles(dict(reversed(styles.items())), Clusters(), seed=7)
    assert first.assignment == turned.assignment
    assert np.array_equal(first.centres, turned.centres)
    in_order = [first.assignment[site] for site in sorted(styles)]
    assert list(dict.fromkeys(in_order)) == list(range(first.k))


def test_equal_silhouettes_go_to_the_smallest_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.styles.clusters.silhouette", lambda points, labels: 0.5)
    assert cluster_styles(blobs(4, 2), Clusters(smallest=3), seed=0).k == 3


def test_a_site_and_a_new_image_go_to_the_nearest_centre() -> None:
    styles = blobs(3, 4)
    found = cluster_styles(styles, Clusters(), seed=0)
    assert all(found.nearest(style) == found.assignment[site] for site, style in styles.items())
    newcomer = styles["city1-0"] + np.float32(5e4)
    assert found.nearest(newcomer) == found.assignment["city1-0"]
    by_hand = StyleClusters(np.array([[0.0, 0.0], [4.0, 0.0]]), {})
    assert [by_hand.nearest(np.array(p)) for p in ([1.0, 9.0], [3.0, -9.0], [2.0, 0.0])] == [0, 1, 0]


def test_small_differences_beside_a_large_mean_are_seen() -> None:
    # in float32 the squares of 1e8 would hide a difference of 100
    styles = {
        name: np.array([1e8, value, 0, 0], dtype=np.float32).reshape(1, 2, 2)
        for name, value in {"a": 0.0, "b": 1.0, "c": 100.0, "d": 101.0}.items()
    }
    found = cluster_styles(styles, Clusters(), seed=0)
    assert found.assignment == {"a": 0, "b": 0, "c": 1, "d": 1}


def test_an_exact_number_is_kept_whatever_the_silhouette_says() -> None:
    found = cluster_styles(blobs(2, 4), Clusters(exact=3), seed=0)
    assert found.k == 3
    assert list(found.silhouettes) == [3]
    assert "set" in found.note
    assert cluster_styles(blobs(2, 2), Clusters(exact=1), seed=0).k == 1
    alone = cluster_styles(blobs(2, 2), Clusters(exact=4), seed=0)
    assert (alone.k, alone.silhouettes) == (4, {})


@pytest.mark.parametrize(
    ("sites", "clusters", "words"),
    [
        (3, {"exact": 4}, "clusters.exact is 4, but 3 sites sent 3 different styles"),
        (3, {"smallest": 3}, "clusters.smallest is 3, but 3 sites sent a style"),
        (2, {"smallest": 4}, "clusters.smallest is 4, but 2 sites"),
        (0, {}, "No site sent a style"),
    ],
)
def test_fewer_sites_than_clusters_are_refused(sites: int, clusters: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        cluster_styles(blobs(max(sites, 1), 1) if sites else {}, Clusters.model_validate(clusters), seed=0)


@pytest.mark.parametrize("sites", [1, 2])
def test_too_few_sites_to_compare_are_one_cluster_and_it_says_so(
    sites: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = cluster_styles(blobs(sites, 1), Clusters(), seed=0)
    assert found.k == 1
    assert "too few to be compared: one cluster" in found.note
    assert found.note in caplog.text
    assert set(found.assignment.values()) == {0}


def test_identical_styles_are_one_cluster_and_it_says_so() -> None:
    same = {f"s{i}": np.ones((3, 1, 1), np.float32) for i in range(5)}
    found = cluster_styles(same, Clusters(), seed=0)
    assert (found.k, found.silhouettes) == (1, {})
    assert found.note == "5 sites, all of the same style: one cluster."
    with pytest.raises(UserError, match="5 sites sent 1 different style;"):
        cluster_styles(same, Clusters(exact=2), seed=0)


def test_there_are_never_more_clusters_than_different_styles() -> None:
    styles = {f"s{i}": np.full((3, 1, 1), float(i % 2), np.float32) for i in range(8)}
    found = cluster_styles(styles, Clusters(), seed=0)
    assert found.silhouettes == {2: 1.0}
    fewer = cluster_styles(styles, Clusters(smallest=4), seed=0)
    assert fewer.k == 2
    assert "2 different styles" in fewer.note


def test_a_range_that_is_empty_is_refused_by_the_settings() -> None:
    with pytest.raises(ValidationError, match="smallest <= largest"):
        Clusters(smallest=5, largest=4)


@pytest.mark.parametrize("bad", [np.full((3, 3, 3), np.nan), np.ones((3, 5, 5))])
def test_styles_that_cannot_be_compared_name_their_site(bad: np.ndarray) -> None:
    with pytest.raises(UserError, match="style of site zoo"):
        cluster_styles(blobs(2, 2) | {"zoo": bad.astype(np.float32)}, Clusters(), seed=0)
    with pytest.raises(ValueError, match="of 75 numbers"):
        cluster_styles(blobs(2, 2), Clusters(), seed=0).nearest(np.ones((3, 5, 5)))


def test_clusters_survive_a_file_without_pickle() -> None:
    found = cluster_styles(blobs(3, 3), Clusters(largest=6), seed=0)
    again = StyleClusters.from_arrays(load(save(found.to_arrays())))
    assert np.array_equal(again.centres, found.centres)
    assert again.assignment == found.assignment
    assert again.silhouettes == found.silhouettes
    one = cluster_styles(blobs(2, 1), Clusters(), seed=0)
    back = StyleClusters.from_arrays(load(save(one.to_arrays())))
    assert (back.note, back.silhouettes) == (one.note, {})


def test_arrays_of_something_else_are_refused() -> None:
    arrays = cluster_styles(blobs(2, 2), Clusters(), seed=0).to_arrays()
    with pytest.raises(ValueError, match="no clusters of styles"):
        StyleClusters.from_arrays({k: v for k, v in arrays.items() if k != "silhouettes"})
    with pytest.raises(ValueError, match="do not fit"):
        StyleClusters.from_arrays(arrays | {"site/x": np.array([9])})


def test_the_description_is_json_and_complete() -> None:
    found = cluster_styles(blobs(2, 2), Clusters(largest=3), seed=0)
    described = found.record().model_dump(mode="json", exclude_unset=True)
    assert described["k"] == 2
    assert described["clusters"] == [["city0-0", "city0-1"], ["city1-0", "city1-1"]]
    assert list(described["silhouettes"]) == ["2", "3"]


def test_purity_by_hand() -> None:
    assignment = {"a": 0, "b": 0, "c": 0, "d": 1, "e": 1}
    domains = {"a": "dusk", "b": "dusk", "c": "day", "d": "day", "e": "rain", "unused": "fog"}
    assert purity(assignment, domains) == 3 / 5
    with pytest.raises(ValueError, match=r"\['z'\]"):
        purity({"z": 0}, domains)
    with pytest.raises(ValueError, match="no sites"):
        purity({}, domains)
