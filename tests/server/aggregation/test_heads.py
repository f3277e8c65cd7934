"""Tests the head rules by hand, against exact arithmetic, and in any order of the replies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest

from common.errors import UserError
from common.settings.federation import Aggregation
from common.wire import Update
from server.aggregation.heads import (
    HEAD_RULES,
    Aggregate,
    aggregate,
    krum_scores,
    site_weights,
    weighted_mean,
)

Heads = dict[str, dict[str, np.ndarray]]


def merged(rule: str, heads: Heads, weights: Mapping[str, float] | None = None, **given: float) -> Aggregate:
    """Merge by a rule; equal weights where none are given."""
    chosen = Aggregation(rule=rule, **given)  # type: ignore[arg-type]
    return aggregate(heads, weights or dict.fromkeys(heads, 1.0), chosen)


def random_heads(count: int, seed: int = 0) -> Heads:
    """Values over many magnitudes: any sum that rounds on the way shows it."""
    rng = np.random.default_rng(seed)
    return {
        f"site-{i}": {
            "w": (rng.standard_normal((5, 3)) * 10.0 ** rng.integers(-12, 12, (5, 3))).astype(np.float32),
            "b": rng.standard_normal(4).astype(np.float16),
            "steps": rng.integers(0, 100, 2),
        }
        for i in range(count)
    }


def scalars(*values: float) -> Heads:
    return {f"s{i}": {"x": np.array([value], dtype=np.float32)} for i, value in enumerate(values)}


def same_bits(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return set(a) == set(b) and all(a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)


# --- mean -------------------------------------------------------------------------------------------------


def test_mean_by_hand() -> None:
    heads = scalars(1, 2, 6)
    assert weighted_mean(heads)["x"] == np.float32(3)
    assert weighted_mean(heads, {"s0": 1, "s1": 1, "s2": 2})["x"] == np.float32(3.75)
    assert weighted_mean(heads, {"s0": 0, "s1": 5, "s2": 0})["x"] == np.float32(2)


def test_mean_equals_rational_arithmetic() -> None:
    heads, rng = random_heads(7), np.random.default_rng(1)
    weights = {site: float(rng.integers(1, 1000)) for site in heads}
    whole = sum(Fraction(w) for w in weights.values())
    result = weighted_mean(heads, weights)
    for name, kind in (("w", np.float32), ("b", np.float16)):
        for index in np.ndindex(result[name].shape):
            terms = (Fraction(weights[s]) * Fraction(float(heads[s][name][index])) for s in heads)
            assert result[name][index] == kind(float(sum(terms) / whole))


def test_every_order_gives_the_same_bits() -> None:
    """All 120 orders of 5 sites; a running float64 sum of the same numbers does not manage that."""
    heads = random_heads(5)
    for site, factor in zip(heads, (1.0, 1e8, -1e8, 1e-8, 1.0), strict=True):
        heads[site]["w"] *= np.float32(factor)
    weights = {site: 0.1 + 0.7 * i for i, site in enumerate(heads)}
    expected = weighted_mean(heads, weights)
    naive = set()
    for order in itertools.permutations(heads):
        assert same_bits(weighted_mean({site: heads[site] for site in order}, weights), expected)
        naive.add(sum(heads[s]["w"].astype(np.float64) * weights[s] for s in order).tobytes())  # type: ignore[union-attr]
    assert len(naive) > 1


def test_same_head_everywhere_stays_as_it_is() -> None:
    head = random_heads(1)["site-0"]
    merged = weighted_mean({f"s{i}": head for i in range(7)}, {f"s{i}": 0.1 * (i + 1) for i in range(7)})
    assert same_bits(merged, head)


def test_types_are_kept_and_integers_stay_integers() -> None:
    big = 2**53 - 1  # the largest odd number that float64 holds
    heads = {
        "a": {"n": np.array([big, 1, 1]), "h": np.array([1], np.float16), "u": np.array([250], np.uint8)},
        "b": {"n": np.array([big, 2, 4]), "h": np.array([2], np.float16), "u": np.array([255], np.uint8)},
    }
    merged = weighted_mean(heads)
    assert merged["n"].dtype == np.int64 and merged["h"].dtype == np.float16 and merged["u"].dtype == np.uint8
    assert merged["n"].tolist() == [big, 2, 2]  # 1.5 and 2.5 are rounded half to even
    assert merged["h"].tolist() == [1.5]
    assert merged["u"].tolist() == [252]  # 505 does not fit into uint8


def test_what_does_not_fit_is_refused_by_name() -> None:
    heads = random_heads(2)
    broken = {
        "nan": heads["site-1"] | {"w": np.full((5, 3), np.nan, np.float32)},
        "shape": heads["site-1"] | {"w": np.zeros((3, 5), np.float32)},
        "type": heads["site-1"] | {"w": np.zeros((5, 3), np.float64)},
        "z-names": {"w": heads["site-1"]["w"]},
    }
    for site, head in broken.items():
        with pytest.raises(UserError, match=f"'{site}'"):
            weighted_mean({"a": heads["site-0"], site: head})
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="weight of site 'site-1'"):
            weighted_mean(heads, {"site-0": 1.0, "site-1": weight})


def test_nothing_to_average_is_refused() -> None:
    with pytest.raises(UserError, match="no site at all"):
        weighted_mean({})
    with pytest.raises(UserError, match="weights are all 0"):
        weighted_mean(scalars(1, 2), {"s0": 0, "s1": 0})
    with pytest.raises(UserError, match="only floats and integers"):
        weighted_mean({"s": {"x": np.array([True])}})


def test_weights_of_a_site() -> None:
    sent = {"a": Update("a", "", facts={"images": 17, "batches": 3})}
    for how, weight in (("images", 17), ("batches", 3), ("uniform", 1)):
        assert site_weights(sent, Aggregation(weights=how)) == {"a": weight}


# --- robust rules -----------------------------------------------------------------------------------------


def test_median_by_hand() -> None:
    assert merged("median", scalars(1, 100, 3)).arrays["x"] == 3
    assert merged("median", scalars(1, 100, 3, 5)).arrays["x"] == 4
    table = {
        "a": {"x": np.array([1.0, 9.0])},
        "b": {"x": np.array([2.0, 8.0])},
        "c": {"x": np.array([9.0, 1.0])},
    }
    assert merged("median", table).arrays["x"].tolist() == [2, 8]  # of each number, not of one site


def test_trimmed_mean_by_hand() -> None:
    heads = scalars(-1000, 1, 2, 3, 1000)
    assert merged("trimmed-mean", heads, trim=0.2).arrays["x"] == 2
    assert merged("trimmed-mean", heads, trim=0.4).arrays["x"] == 2
    assert merged("trimmed-mean", heads, trim=0.0).arrays["x"] == np.float32(6 / 5)
    assert merged("trimmed-mean", heads, trim=0.39).arrays["x"] == 2  # int(0.39 * 5) = 1 at either end


def test_krum_by_hand() -> None:
    """Points 0, 1, 3, 6, 100 with one hostile site: each looks at its 5 - 1 - 2 = 2 nearest others."""
    heads = scalars(0, 1, 3, 6, 100)
    assert krum_scores(heads, 1) == {
        "s0": 1 + 9,
        "s1": 1 + 4,
        "s2": 4 + 9,
        "s3": 9 + 25,
        "s4": 94**2 + 97**2,
    }
    chosen = merged("krum", heads, malicious=1)
    assert chosen.sites == ("s1",) and chosen.arrays["x"] == 1
    three = merged("multi-krum", heads, malicious=1, keep=3)
    assert three.sites == ("s0", "s1", "s2") and three.arrays["x"] == np.float32(4 / 3)
    weighted = merged("multi-krum", heads, {"s0": 1, "s1": 1, "s2": 2, "s3": 1, "s4": 1}, malicious=1, keep=3)
    assert weighted.arrays["x"] == np.float32(7 / 4)
    assert merged("multi-krum", heads, malicious=1).sites == ("s0", "s1", "s2", "s3")


def test_krum_equals_a_slow_loop() -> None:
    heads = {s: {"a": h["b"].astype(np.float32), "b": h["w"][:2] * 0 + 1} for s, h in random_heads(9).items()}
    points = {s: np.concatenate([np.ravel(h[k]) for k in sorted(h)]).astype(float) for s, h in heads.items()}
    result = krum_scores(heads, 2)
    for site, point in points.items():
        away = sorted(float(((point - other) ** 2).sum()) for name, other in points.items() if name != site)
        assert result[site] == pytest.approx(sum(away[: 9 - 2 - 2]))


def test_krum_chooses_as_flowers_strategy_does() -> None:
    flower = pytest.importorskip("flwr.serverapp.strategy.multikrum")
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    rng = np.random.default_rng(3)
    heads = {f"s{i}": {"x": rng.standard_normal(20)} for i in range(9)}
    contents = [
        RecordDict({"arrays": ArrayRecord({"x": Array(h["x"])}), "who": ConfigRecord({"site": s})})
        for s, h in heads.items()
    ]
    picked = flower.select_multikrum(contents, 2, 4)
    assert merged("multi-krum", heads, malicious=2, keep=4).sites == tuple(
        sorted(str(c["who"]["site"]) for c in picked)
    )


def test_krum_with_too_few_sites_is_refused() -> None:
    for count, malicious in ((2, 0), (4, 1), (6, 2)):
        with pytest.raises(UserError, match=f"needs at least {2 * malicious + 3} sites but {count} answered"):
            merged("krum", scalars(*range(count)), malicious=malicious)
    assert merged("krum", scalars(*range(7)), malicious=2).sites
    with pytest.raises(UserError, match="keep 6 sites but 5"):
        merged("multi-krum", scalars(*range(5)), malicious=1, keep=6)


@pytest.mark.parametrize("rule", HEAD_RULES.names())
def test_no_rule_depends_on_the_order_of_sites(rule: str) -> None:
    heads = {
        s: {k: v for k, v in h.items() if k != "w"} | {"w": h["b"] * 3} for s, h in random_heads(7).items()
    }
    chosen = Aggregation(rule=rule, malicious=2, trim=0.2)  # type: ignore[arg-type]
    weights = {site: float(i + 1) for i, site in enumerate(heads)}
    expected = aggregate(heads, weights, chosen)
    assert {k: v.dtype for k, v in expected.arrays.items()} == {
        k: v.dtype for k, v in heads["site-0"].items()
    }
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(list(heads)).tolist()
        again = aggregate({site: heads[site] for site in order}, weights, chosen)
        assert again.sites == expected.sites and same_bits(again.arrays, expected.arrays)


def test_ties_of_krum_go_to_the_first_name() -> None:
    heads = {name: {"x": np.ones(3, np.float32)} for name in ("d", "b", "e", "c", "a")}
    assert merged("krum", heads, malicious=1).sites == ("a",)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_robust_rules_ignore_the_weight_that_a_hostile_site_claims(rule: str) -> None:
    heads = scalars(1.0, 1.1, 0.9, 1.05, 0.95, 1e6, -1e6)
    greedy = {site: 1e9 if site in ("s5", "s6") else 1.0 for site in heads}
    chosen = Aggregation(rule=rule, malicious=2, trim=0.3)  # type: ignore[arg-type]
    assert abs(float(aggregate(heads, greedy, chosen).arrays["x"][0]) - 1) < 0.11


def test_large_arrays_are_cut_into_runs_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = {
        f"s{i}": {"w": np.random.default_rng(i).standard_normal((13, 7)).astype(np.float32)} for i in range(5)
    }
    whole = [merged("median", heads).arrays, merged("trimmed-mean", heads, trim=0.2).arrays]
    monkeypatch.setattr("server.aggregation.heads._BLOCK", 20)
    for a, b in zip(
        whole, [merged("median", heads).arrays, merged("trimmed-mean", heads, trim=0.2).arrays], strict=True
    ):
        assert same_bits(a, b)
    stacked = np.stack([h["w"] for h in heads.values()]).astype(np.float64)
    assert np.array_equal(whole[0]["w"], np.median(stacked, axis=0).astype(np.float32))
    assert np.allclose(whole[1]["w"], np.sort(stacked, axis=0)[1:4].mean(axis=0), atol=1e-7)
