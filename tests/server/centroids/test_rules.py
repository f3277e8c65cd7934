"""Tests the centroid rules by hand, against slow loops, for dead rows and in any order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from common.errors import UserError
from common.settings.unsupervised import Centroids
from server.centroids.base import (
    CENTROID_RULES,
    Merged,
    SiteRows,
    directions,
    displacement,
    merge_centroids,
    stack_sites,
)
from server.centroids.matched import geometric_median, match_sites

PUBLISHED = {"spherical": False, "weighted": False, "keep_index": False}
RULES = ["mean", "fedcc-kmeans", "fedcc-maximin", "matched", "matched-median", "matched-geometric"]


def settings(merge: str, **changes: object) -> Centroids:
    return Centroids(merge=merge, **changes)  # type: ignore[arg-type]


def site(rows: object, counts: object = None) -> SiteRows:
    centroids = np.array(rows, dtype=np.float32)
    return SiteRows(centroids, np.ones(len(centroids), np.int64) if counts is None else np.array(counts))


def kmeans(
    current: np.ndarray, sites: SiteRows | dict[str, SiteRows], memory: object = None, **given: object
) -> Merged:
    """One step of rule lloyd from the sites' sums, or from the sums of one site."""
    every = sites if isinstance(sites, dict) else {"one": sites}
    return merge_centroids(current, every, settings("lloyd", **given), memory=memory)  # type: ignore[arg-type]


def around(centres: np.ndarray, sites: int, seed: int = 0, noise: float = 0.1) -> dict[str, SiteRows]:
    """Sites whose rows are noisy versions of the centres, of various lengths and counts."""
    rng = np.random.default_rng(seed)
    made = {}
    for i in range(sites):
        rows = directions(centres) + noise * rng.standard_normal(centres.shape)
        made[f"site-{i:03}"] = site(
            rows * rng.uniform(0.5, 5, (len(rows), 1)), rng.integers(1, 500, len(rows))
        )
    return made


def shuffled(sites: dict[str, SiteRows], seed: int) -> dict[str, SiteRows]:
    """Return the same sites, each with its rows in another order."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, sent in sites.items():
        order = rng.permutation(len(sent.counts))
        made[name] = SiteRows(sent.rows[order], sent.counts[order])
    return made


def gaussian(clusters: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((clusters, dim)).astype(np.float32)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("kd,kd->k", directions(a), directions(b))


# --- what holds for all rules -----------------------------------------------------------------------------


def variants() -> list[Centroids]:
    plain = [settings(rule) for rule in RULES if not rule.startswith("fedcc")]
    return plain + [
        settings(rule, spherical=spherical, weighted=weighted, keep_index=keep)
        for rule in ("fedcc-kmeans", "fedcc-maximin")
        for spherical, weighted, keep in itertools.product((False, True), repeat=3)
    ]


def label(chosen: Centroids) -> str:
    flags = [f for f in ("spherical", "weighted", "keep_index") if getattr(chosen, f)]
    return "+".join([chosen.merge, *(flags if chosen.merge.startswith("fedcc") else [])])


@pytest.mark.parametrize("chosen", variants(), ids=label)
def test_order_of_sites_changes_no_bit(chosen: Centroids) -> None:
    current = gaussian(5, 8)
    sites = around(current, 7, noise=0.4)
    weights = {name: float(1 + i) for i, name in enumerate(sites)}
    expected = merge_centroids(current, sites, chosen, weights)
    assert expected.centroids.shape == (5, 8) and expected.centroids.dtype == np.float32
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(list(sites)).tolist()
        again = merge_centroids(current, {name: sites[name] for name in order}, chosen, weights)
        assert again.centroids.tobytes() == expected.centroids.tobytes()
        assert (again.dead, again.displacement) == (expected.dead, expected.displacement)


@pytest.mark.parametrize("chosen", variants(), ids=label)
def test_sites_that_agree_change_nothing(chosen: Centroids) -> None:
    current = directions(gaussian(4, 6)).astype(np.float32)
    sites = {f"s{i}": SiteRows(current, np.full(4, 10)) for i in range(5)}
    merged = merge_centroids(current, sites, chosen)
    best = (directions(merged.centroids) @ directions(current).T).max(axis=0)
    assert np.allclose(best, 1, atol=1e-5)
    if chosen.keep_index or not chosen.merge.startswith("fedcc"):
        assert np.allclose(merged.centroids, current, atol=1e-5)
        assert merged.displacement < 1e-4


@pytest.mark.parametrize("rule", RULES)
def test_what_does_not_fit_is_refused_by_name(rule: str) -> None:
    current, good = gaussian(3, 4), site(gaussian(3, 4))
    broken = {
        "shape": site(gaussian(4, 4)),
        "counts": SiteRows(gaussian(3, 4), np.ones(2, np.int64)),
        "nan": site(np.full((3, 4), np.nan)),
        "negative": site(gaussian(3, 4), [1, -1, 1]),
    }
    for name, bad in broken.items():
        with pytest.raises(UserError, match=f"'{name}'"):
            merge_centroids(current, {"good": good, name: bad}, settings(rule))
    with pytest.raises(UserError, match="no site at all"):
        merge_centroids(current, {}, settings(rule))


def test_displacement_is_that_of_directions() -> None:
    current = np.array([[2.0, 0.0], [0.0, 1.0]])
    assert displacement(current, np.array([[7.0, 0.0], [0.0, 3.0]])) == 0.0
    assert displacement(current, np.array([[0.0, 1.0], [0.0, -1.0]])) == pytest.approx(np.sqrt(2 + 4))
    merged = merge_centroids(current, {"a": site([[0, 5], [0, 1]])}, settings("mean"))
    assert merged.displacement == pytest.approx(np.sqrt(2))


# --- mean -------------------------------------------------------------------------------------------------


def test_mean_is_index_wise_and_weighted_by_site() -> None:
    current = np.zeros((2, 2), np.float32)
    sites = {"a": site([[1, 0], [0, 2]], [5, 0]), "b": site([[3, 4], [0, -2]], [1, 0])}
    assert merge_centroids(current, sites, settings("mean")).centroids.tolist() == [[2, 2], [0, 0]]
    merged = merge_centroids(current, sites, settings("mean"), {"a": 3, "b": 1})
    assert merged.centroids.tolist() == [[1.5, 1], [0, 1]]
    assert merged.dead == (1,)


# --- fedcc ------------------------------------------------------------------------------------------------


def test_published_maximin_by_hand() -> None:
    """From row 0 at the origin: the farthest row is (9, 0), then (0, 5) at distance 5, then (4, 0) at 4."""
    current = gaussian(4, 2)
    sites = {"a": site([[0, 0], [1, 0], [0, 5], [9, 0]]), "b": site([[4, 0], [8, 0], [0, 4], [1, 1]])}
    merged = merge_centroids(current, sites, settings("fedcc-maximin", **PUBLISHED))
    assert merged.centroids.tolist() == [[0, 0], [9, 0], [0, 5], [4, 0]]  # selected rows, selection order


def slow_maximin(points: np.ndarray, clusters: int) -> list[int]:
    chosen = [0]
    while len(chosen) < clusters:
        gaps = [min(float(np.linalg.norm(p - points[s])) for s in chosen) for p in points]
        chosen.append(gaps.index(max(gaps)))
    return chosen


def test_published_maximin_equals_a_slow_loop() -> None:
    current = gaussian(6, 5)
    sites = around(current, 8, noise=0.5)
    merged = merge_centroids(current, sites, settings("fedcc-maximin", **PUBLISHED))
    points = stack_sites(sites, current).rows.reshape(-1, 5)
    assert np.array_equal(merged.centroids, points[slow_maximin(points.astype(np.float64), 6)])


def test_published_kmeans_is_sklearns() -> None:
    from sklearn.cluster import KMeans

    current = gaussian(5, 6)
    sites = around(current, 9, noise=0.5)
    merged = merge_centroids(current, sites, settings("fedcc-kmeans", **PUBLISHED))
    stacked = np.concatenate([sites[name].rows for name in sorted(sites)])
    expected = KMeans(5, random_state=42, n_init=10).fit(stacked).cluster_centers_
    assert np.allclose(merged.centroids, expected, atol=1e-6)


@pytest.mark.parametrize("how", ["kmeans", "maximin"])
@pytest.mark.parametrize(("spherical", "weighted"), [(True, False), (True, True), (False, True)])
def test_dead_rows_are_left_out(how: str, spherical: bool, weighted: bool) -> None:
    """A row that no patch chose lies far from everything; only the published rule lets it in."""
    current = np.eye(3, 4, dtype=np.float32)
    sites = around(current, 6, noise=0.02)
    outlier = np.array([0, 0, 0, 50], np.float32)
    for sent in sites.values():
        sent.rows[2] = outlier
        sent.counts[2] = 0
    chosen = settings(f"fedcc-{how}", spherical=spherical, weighted=weighted)
    merged = merge_centroids(current, sites, chosen)
    assert np.abs(directions(merged.centroids)[:, 3]).max() < 0.2
    published = merge_centroids(current, sites, settings(f"fedcc-{how}", spherical=False, weighted=False))
    assert directions(published.centroids)[:, 3].max() > 0.99


@pytest.mark.parametrize("how", ["kmeans", "maximin"])
def test_too_few_live_rows_leave_the_other_clusters_as_they_are(how: str) -> None:
    current = directions(gaussian(5, 8)).astype(np.float32)
    rows = current[[3, 1, 0, 2, 4]] * 2
    sites = {"only": SiteRows(rows, np.array([7, 9, 0, 0, 0]))}  # live: what are clusters 3 and 1
    merged = merge_centroids(current, sites, settings(f"fedcc-{how}", keep_index=False))
    assert merged.dead == (0, 2, 4)
    assert np.array_equal(merged.centroids[[0, 2, 4]], current[[0, 2, 4]])
    assert np.allclose(cosines(merged.centroids, current), 1, atol=1e-6)
    nobody = {"only": SiteRows(rows, np.zeros(5, np.int64))}
    merged = merge_centroids(current, nobody, settings(f"fedcc-{how}"))
    assert np.array_equal(merged.centroids, current) and merged.dead == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("how", ["kmeans", "maximin"])
@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("keep_index", [True, False])
def test_equal_rows_do_not_become_several_centroids(
    how: str, spherical: bool, weighted: bool, keep_index: bool
) -> None:
    current = directions(gaussian(4, 5)).astype(np.float32)
    sites = {name: SiteRows(current[[1, 3, 1, 1]], np.array([4, 5, 6, 7])) for name in "ab"}
    options = {"spherical": spherical, "weighted": weighted, "keep_index": keep_index}
    merged = merge_centroids(current, sites, settings(f"fedcc-{how}", **options))
    assert np.allclose(merged.centroids, current, atol=1e-6)
    assert merged.dead == (0, 2)


def test_counts_pull_the_centroids() -> None:
    current = np.eye(2, 3, dtype=np.float32)
    heavy = site([[1, 0.3, 0], [0, 1, 0]], [99, 1])
    light = site([[1, -0.3, 0], [0, 1, 0]], [1, 99])
    for how in ("kmeans", "maximin"):
        merged = merge_centroids(current, {"a": heavy, "b": light}, settings(f"fedcc-{how}"))
        expected = directions(99 * directions(heavy.rows[0]) + directions(light.rows[0]))
        assert np.allclose(directions(merged.centroids[0]), expected, atol=1e-6), how
        equal = merge_centroids(current, {"a": heavy, "b": light}, settings(f"fedcc-{how}", weighted=False))
        assert not np.allclose(directions(equal.centroids[0]), expected, atol=1e-3), how


def test_many_sites_are_clustered_from_a_sample_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    current = directions(gaussian(5, 8)).astype(np.float32)
    sites = around(current, 60, noise=0.1)
    whole = merge_centroids(current, sites, settings("fedcc-kmeans"))
    monkeypatch.setattr("server.centroids.fedcc._SAMPLE", 50)
    sampled = merge_centroids(current, sites, settings("fedcc-kmeans"))
    assert np.allclose(sampled.centroids, whole.centroids, atol=1e-5)


def test_index_is_kept_only_on_request() -> None:
    current = directions(gaussian(6, 16)).astype(np.float32)
    sites = shuffled(around(current, 10, noise=0.05), 1)
    for how in ("kmeans", "maximin"):
        kept = merge_centroids(current, sites, settings(f"fedcc-{how}"))
        assert cosines(kept.centroids, current).min() > 0.95, how
        loose = merge_centroids(current, sites, settings(f"fedcc-{how}", keep_index=False))
        assert cosines(loose.centroids, current).min() < 0.9, how
        assert {tuple(r) for r in loose.centroids.tolist()} == {tuple(r) for r in kept.centroids.tolist()}


def test_directions_decide_the_spherical_rules() -> None:
    """Lengths carry no meaning for a cosine argmax; raw maximin follows them all the same."""
    current = directions(gaussian(4, 8)).astype(np.float32)
    sites = around(current, 6)
    longer = {n: SiteRows(s.rows * np.float32(2.0) ** i, s.counts) for i, (n, s) in enumerate(sites.items())}
    for how in ("kmeans", "maximin"):
        a, b = (merge_centroids(current, s, settings(f"fedcc-{how}")) for s in (sites, longer))
        assert np.allclose(a.centroids, b.centroids, atol=1e-6)
        a, b = (
            merge_centroids(current, s, settings(f"fedcc-{how}", spherical=False, weighted=False))
            for s in (sites, longer)
        )
        assert not np.allclose(directions(a.centroids), directions(b.centroids), atol=1e-2)


# --- matched ----------------------------------------------------------------------------------------------


def test_matching_equals_brute_force() -> None:
    current = gaussian(5, 6)
    stack = stack_sites({f"s{i}": site(gaussian(5, 6, i + 1)) for i in range(6)}, current)
    matches = match_sites(current, stack)
    for rows, found in zip(stack.rows, matches, strict=True):
        similarity = directions(rows) @ directions(current).T
        best = max(
            itertools.permutations(range(5)), key=lambda p: sum(similarity[i, c] for i, c in enumerate(p))
        )
        assert tuple(found) == best


@pytest.mark.parametrize("rule", ["matched", "matched-median", "matched-geometric"])
def test_rows_in_another_order_on_each_site_change_nothing(rule: str) -> None:
    current = gaussian(6, 10)
    sites = around(current, 9)
    a = merge_centroids(current, sites, settings(rule))
    b = merge_centroids(current, shuffled(sites, 5), settings(rule))
    assert np.allclose(a.centroids, b.centroids, atol=1e-6)
    assert np.allclose(np.linalg.norm(a.centroids, axis=1), 1, atol=1e-6)


def test_matched_is_the_count_weighted_direction() -> None:
    current = np.eye(2, dtype=np.float32)
    sites = {"a": site([[0, 10], [3, 0]], [30, 10]), "b": site([[1, 1], [-1, 1]], [10, 0])}
    merged = merge_centroids(current, sites, settings("matched"))
    expected = directions(10 * np.array([1, 0]) + 10 * np.array([1, 1]) / np.sqrt(2))
    assert np.allclose(merged.centroids, [expected, [0, 1]], atol=1e-6)
    assert merged.dead == ()


def test_a_dead_row_does_not_take_the_place_of_a_live_one() -> None:
    """The dead row happens to be nearest to cluster 0; the live row must get it nevertheless."""
    current = np.eye(2, dtype=np.float32)
    stack = stack_sites({"a": site([[1, 0], [0.9, 0.1]], [0, 50])}, current)
    assert match_sites(current, stack).tolist() == [[1, 0]]
    merged = merge_centroids(current, {"a": site([[1, 0], [0.9, 0.1]], [0, 50])}, settings("matched"))
    assert np.allclose(merged.centroids, [directions(np.array([0.9, 0.1])), [0, 1]], atol=1e-6)
    assert merged.dead == (1,)


@pytest.mark.parametrize("rule", ["matched", "matched-median", "matched-geometric"])
def test_clusters_that_nobody_used_or_that_cancel_out_stay(rule: str) -> None:
    current = 3 * np.eye(3, dtype=np.float32)
    rows = np.eye(3)
    sites = {"a": site(rows, [4, 0, 0]), "b": site(rows * [[1], [1], [-1]], [4, 0, 0])}
    merged = merge_centroids(current, sites, settings(rule))
    assert merged.dead == (1, 2)
    assert np.array_equal(merged.centroids[1:], current[1:])  # not even rescaled


def test_geometric_median_by_hand_and_by_its_optimality() -> None:
    """For a majority at one point that point is the answer, and elsewhere the unit vectors balance."""
    assert np.allclose(
        geometric_median(np.array([[1.0, 2.0]] * 3 + [[90.0, 0.0], [0.0, -90.0]])), [1, 2], atol=1e-5
    )
    points = np.random.default_rng(0).standard_normal((15, 4))
    centre = geometric_median(points)
    assert np.abs(directions(points - centre).sum(axis=0)).max() < 1e-6


@pytest.mark.parametrize("rule", ["matched-median", "matched-geometric"])
def test_robust_rules_resist_a_minority_with_huge_counts(rule: str) -> None:
    current = gaussian(5, 16)
    clean = around(current, 7, noise=0.05)
    hostile = {
        name: SiteRows(1e6 * gaussian(5, 16, i), np.full(5, 10**9)) for i, name in enumerate(("x", "y"), 50)
    }
    reference = merge_centroids(current, clean, settings(rule)).centroids
    robust = merge_centroids(current, clean | hostile, settings(rule)).centroids
    plain = merge_centroids(current, clean | hostile, settings("matched")).centroids
    assert cosines(robust, reference).min() > 0.98
    assert cosines(plain, reference).max() < 0.9


# --- lloyd ------------------------------------------------------------------------------------------------


def e_step(codes: np.ndarray, centroids: np.ndarray) -> SiteRows:
    """One slow E-step: every unit code goes to the centroid of the highest cosine."""
    sums, counts = np.zeros(centroids.shape), np.zeros(len(centroids), np.int64)
    for code in codes:
        nearest = int(np.argmax(directions(centroids) @ code))
        sums[nearest] += code
        counts[nearest] += 1
    return SiteRows(sums, counts)


@pytest.mark.parametrize("split", ["halves", "one-each-way", "skewed"])
def test_lloyd_over_sites_equals_pooled_spherical_kmeans(split: str) -> None:
    rng = np.random.default_rng(0)
    modes = directions(rng.standard_normal((4, 6)))
    codes = directions(modes[rng.integers(0, 4, 300)] + 0.4 * rng.standard_normal((300, 6)))
    owner = {
        "halves": np.arange(300) % 2,
        "one-each-way": np.arange(300) % 100,
        "skewed": (codes[:, 0] > 0) + 0,
    }[split]
    pooled = federated = directions(codes[:4]).astype(np.float64)
    for _ in range(5):
        whole = e_step(codes, pooled).rows
        pooled = whole / np.linalg.norm(whole, axis=1, keepdims=True)
        sites = {f"s{o}": e_step(codes[owner == o], federated) for o in np.unique(owner)}
        federated = kmeans(federated, sites).centroids
    assert np.abs(pooled - federated).max() < 1e-12


def test_lloyd_never_lowers_the_mean_cosine() -> None:
    codes = directions(gaussian(200, 5, 1))
    centroids, values = directions(gaussian(6, 5)), []
    for _ in range(8):
        values.append(float((codes @ centroids.T).max(axis=1).mean()))
        centroids = kmeans(centroids, e_step(codes, centroids), empty="keep").centroids
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values)) and values[-1] > values[0] + 0.05


def test_sums_do_not_depend_on_the_order_of_sites() -> None:
    rng = np.random.default_rng(0)
    current = gaussian(3, 4)
    sites = {f"s{i}": SiteRows(rng.standard_normal((3, 4)) * 0.1, np.full(3, 7)) for i in range(5)}
    expected = kmeans(current, sites).state
    for order in itertools.permutations(sites):
        again = kmeans(current, {name: sites[name] for name in order}).state
        assert again["sums"].tobytes() == expected["sums"].tobytes()
    assert expected["counts"].tolist() == [35, 35, 35]


def test_momentum_is_a_running_sum_that_can_be_resumed() -> None:
    current = np.eye(2)
    first = SiteRows(np.array([[4.0, 0.0], [0.0, 4.0]]), np.array([4, 4]))
    second = SiteRows(np.array([[0.0, 3.0], [0.0, 4.0]]), np.array([3, 4]))
    one = kmeans(current, first, momentum=0.5)
    two = kmeans(one.centroids, second, one.state, momentum=0.5)
    assert np.allclose(two.centroids[0], directions(np.array([2.0, 3.0])))
    assert two.state["counts"].tolist() == [5, 6]
    assert all(value.dtype == np.float64 for value in two.state.values())
    with pytest.raises(UserError, match="another model"):
        kmeans(current, first, {"sums": np.zeros((3, 2))}, momentum=0.5)


def two_modes() -> tuple[np.ndarray, np.ndarray]:
    """Codes in two modes that one centroid holds, and a second centroid that nobody is near to."""
    rng = np.random.default_rng(0)
    codes = directions(
        np.repeat([[1.0, 0.4, 0.0], [1.0, -0.4, 0.0]], 50, axis=0) + 0.02 * rng.standard_normal((100, 3))
    )
    return codes, np.array([[1.0, 0.0, 0.0], [-1.0, 0.3, 0.0]])


def test_an_empty_cluster_is_kept_or_splits_the_widest() -> None:
    codes, current = two_modes()
    total = e_step(codes, current)
    kept = kmeans(current, total, empty="keep")
    assert kept.dead == (1,) and kept.reseeded == () and np.array_equal(kept.centroids[1], current[1])
    split = kmeans(current, total, empty="split")
    assert split.dead == (1,) and split.reseeded == (1,)
    next_total = e_step(codes, split.centroids)
    assert sorted(next_total.counts.tolist()) == [50, 50]  # the halves are the two modes
    again = kmeans(current, total, empty="split")
    assert again.centroids.tobytes() == split.centroids.tobytes()


def test_the_widest_cluster_is_the_one_that_is_split() -> None:
    current = np.eye(3)
    wide, narrow = np.array([0.6, 0.0, 0.0]) * 100, np.array([0.0, 0.99, 0.0]) * 500  # n - ||S||: 40 and 5
    total = SiteRows(np.stack([wide, narrow, np.zeros(3)]), np.array([100, 500, 0]))
    merged = kmeans(current, total)
    assert merged.reseeded == (2,)
    assert np.array_equal(merged.centroids[1], [0, 1, 0])
    assert np.allclose(merged.centroids[0], directions(np.array([1, 0, -0.05])))
    assert np.allclose(merged.centroids[2], directions(np.array([1, 0, 0.05])))
    assert merged.state["counts"].tolist() == [50, 500, 50]
    lengths = np.linalg.norm(merged.state["sums"], axis=1)
    assert np.allclose(lengths, [30, 495, 30])


def test_several_empty_clusters_all_find_a_place() -> None:
    current = directions(gaussian(5, 4))
    total = SiteRows(np.stack([np.array([20.0, 0, 0, 0])] + [np.zeros(4)] * 4), np.array([100, 0, 0, 0, 0]))
    merged = kmeans(current, total)
    assert merged.dead == merged.reseeded == (1, 2, 3, 4)
    assert len({tuple(row) for row in merged.centroids.round(6).tolist()}) == 5
    assert merged.state["counts"].sum() == 100


def test_codes_without_spread_are_not_split() -> None:
    current = np.eye(2)
    merged = kmeans(current, SiteRows(np.array([[8.0, 0.0], [0.0, 0.0]]), np.array([8, 0])))
    assert merged.dead == (1,) and merged.reseeded == ()
    assert np.array_equal(merged.centroids, current)


def test_impossible_sums_are_refused_by_name() -> None:
    current = np.eye(2)
    good = SiteRows(np.eye(2), np.array([2, 2]))
    broken = {
        "long": SiteRows(3 * np.eye(2), np.array([2, 2])),  # two unit vectors cannot add up to length 3
        "nan": SiteRows(np.full((2, 2), np.nan), np.array([2, 2])),
        "shape": SiteRows(np.eye(3), np.array([2, 2, 2])),
        "negative": SiteRows(np.zeros((2, 2)), np.array([-1, 2])),
    }
    for name, bad in broken.items():
        with pytest.raises(UserError, match=f"'{name}'"):
            kmeans(current, {"good": good, name: bad})
    with pytest.raises(UserError, match="no site at all"):
        kmeans(current, {})


def test_an_unknown_rule_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'loyd'.*fedcc-kmeans.*mean.*'lloyd'\?"):
        merge_centroids(np.eye(2), {"a": site(np.eye(2))}, settings("loyd"))


def test_every_rule_is_registered_with_its_facts() -> None:
    """Who needs sums, who compares single sites, and who stands hostile ones."""
    facts = {entry.name: entry.facts for entry in CENTROID_RULES.entries()}
    assert set(facts) == {*RULES, "lloyd"}
    assert [name for name, fact in facts.items() if fact.takes == "sums"] == ["lloyd"]
    assert [name for name, fact in facts.items() if not fact.single_sites] == ["lloyd", "mean"]
    assert [name for name, fact in facts.items() if fact.robust] == ["matched-geometric", "matched-median"]


def test_a_merge_leaves_its_arguments_alone() -> None:
    current = gaussian(3, 4)
    sites = around(current, 3)
    before = [current.copy(), *(s.rows.copy() for s in sites.values())]
    for rule in RULES:
        assert isinstance(merge_centroids(current, sites, settings(rule)), Merged)
    kmeans(current, SiteRows(np.zeros((3, 4)), np.zeros(3)))
    for a, b in zip(before, [current, *(s.rows for s in sites.values())], strict=True):
        assert np.array_equal(a, b)
