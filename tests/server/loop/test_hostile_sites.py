"""Does a robust rule carry a run through when 2 of 9 sites send rubbish, and does plain averaging not?

A simulation without images: nine sites hold noisy copies of one segmentation head (linear plus non-linear
branch, as in `common/models/head.py`) and the centroids of their own codes. Two turn hostile: they send
their head scaled or sign-flipped, and random centroids with huge counts. The merged head and centroids then
segment fresh features, scored by matched mIoU. Run with ``-s`` to see the table.
"""

from __future__ import annotations

import numpy as np
import pytest

from common.evaluation.metrics import Confusion, match, scores
from common.settings.federation import Aggregation
from common.settings.load import load_config
from common.settings.unsupervised import Centroids
from common.wire import Update
from server.aggregation.heads import aggregate
from server.centroids.base import SiteRows, directions, merge_centroids
from server.states import ModelState
from server.tasks.unsupervised_merge import kmeans_pass

CLASSES, CHANNELS, DIM, SITES = 6, 24, 16, 9
HOSTILE = ("site-3", "site-7")

PLAIN = [("mean", "mean"), ("mean", "matched")]
HALF = [
    ("mean", "matched-median"),
    ("trimmed-mean", "matched"),
]  # shows that heads and centroids both need it
ROBUST = [
    ("median", "matched-median"),
    ("trimmed-mean", "matched-median"),
    ("krum", "matched-geometric"),
    ("multi-krum", "matched-geometric"),
]
ATTACKS = {"scaled x30": 30.0, "scaled x-5": -5.0, "flipped": -1.0}

Head = dict[str, np.ndarray]


def codes(head: Head, features: np.ndarray) -> np.ndarray:
    """Return the codes [M, D] of features [M, C]."""
    hidden = np.maximum(features @ head["nonlinear.0.weight"].T + head["nonlinear.0.bias"], 0)
    linear = features @ head["linear.weight"].T + head["linear.bias"]
    return np.asarray(linear + hidden @ head["nonlinear.2.weight"].T)


class World:
    """Features of six classes, one true head, and nine honest sites that know it up to noise."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = np.random.default_rng(seed)
        self.prototypes = rng.standard_normal((CLASSES, CHANNELS))
        head = {
            "linear.weight": rng.standard_normal((DIM, CHANNELS)) / CHANNELS**0.5,
            "linear.bias": 0.1 * rng.standard_normal(DIM),
            "nonlinear.0.weight": rng.standard_normal((CHANNELS, CHANNELS)) / CHANNELS**0.5,
            "nonlinear.0.bias": 0.1 * rng.standard_normal(CHANNELS),
            "nonlinear.2.weight": rng.standard_normal((DIM, CHANNELS)) / CHANNELS**0.5,
        }
        features, labels = self.draw(1200)
        self.centroids = self.means(head, features, labels)
        self.heads: dict[str, Head] = {}
        self.sites: dict[str, SiteRows] = {}
        for index in range(SITES):
            own = {
                n: (v + 0.3 * v.std() * rng.standard_normal(v.shape)).astype(np.float32)
                for n, v in head.items()
            }
            features, labels = self.draw(600)
            self.heads[f"site-{index}"] = own
            counts = np.bincount(labels, minlength=CLASSES)
            self.sites[f"site-{index}"] = SiteRows(self.means(own, features, labels), counts)

    def draw(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = self.rng.integers(0, CLASSES, count)
        return self.prototypes[labels] + 0.7 * self.rng.standard_normal((count, CHANNELS)), labels

    @staticmethod
    def means(head: Head, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        units = directions(codes(head, features))
        sums = np.stack([units[labels == c].sum(axis=0) for c in range(CLASSES)])
        return directions(sums).astype(np.float32)

    def attacked(self, factor: float | None) -> tuple[dict[str, Head], dict[str, SiteRows]]:
        heads, sites = dict(self.heads), dict(self.sites)
        rng = np.random.default_rng(99)
        for name in HOSTILE if factor is not None else ():
            heads[name] = {key: np.float32(factor) * value for key, value in heads[name].items()}
            rubbish = 100 * rng.standard_normal((CLASSES, DIM)).astype(np.float32)
            sites[name] = SiteRows(rubbish, np.full(CLASSES, 10**7))
        return heads, sites

    def miou(self, rules: tuple[str, str], factor: float | None) -> float:
        heads, sites = self.attacked(factor)
        chosen = Aggregation(rule=rules[0], trim=0.25, malicious=2)  # type: ignore[arg-type]
        head = aggregate(heads, dict.fromkeys(heads, 1.0), chosen).arrays
        merge = Centroids(merge=rules[1])  # type: ignore[arg-type]
        centroids = merge_centroids(self.centroids, sites, merge).centroids
        features, labels = (
            np.random.default_rng(5).standard_normal((3000, CHANNELS)),
            np.arange(3000) % CLASSES,
        )
        features = self.prototypes[labels] + 0.7 * features
        confusion = Confusion(CLASSES, CLASSES)
        confusion.update((codes(head, features) @ directions(centroids).T).argmax(axis=1), labels)
        return scores(confusion, match(confusion)).miou


def test_one_robust_rule_survives_and_plain_averaging_does_not() -> None:
    worlds = [World(seed) for seed in range(3)]
    attacks = {"clean": None, **ATTACKS}
    table = {
        rules: {
            name: float(np.mean([world.miou(rules, factor) for world in worlds]))
            for name, factor in attacks.items()
        }
        for rules in [*PLAIN, *HALF, *ROBUST]
    }
    print("\n" + " " * 36 + "".join(f"{name:>12}" for name in attacks))
    for rules, row in table.items():
        print(f"{' + '.join(rules):<36}" + "".join(f"{100 * value:12.1f}" for value in row.values()))
    clean = table["mean", "matched"]["clean"]
    assert clean > 0.8
    assert all(table[rules][name] < clean - 0.02 for rules in PLAIN for name in ATTACKS)
    survivors = [rules for rules in ROBUST if all(abs(table[rules][a] - clean) < 0.02 for a in ATTACKS)]
    assert ("trimmed-mean", "matched-median") in survivors
    assert ("multi-krum", "matched-geometric") in survivors


@pytest.mark.parametrize("rules", ROBUST, ids="+".join)
def test_robust_rules_cost_little_when_nobody_is_hostile(rules: tuple[str, str]) -> None:
    world = World(0)
    assert world.miou(rules, None) > world.miou(PLAIN[1], None) - (0.06 if rules[0] == "krum" else 0.02)


@pytest.mark.parametrize("rule", ["matched-median", "matched-geometric"])
def test_polish_passes_keep_to_the_robust_rule_of_the_settings(rule: str) -> None:
    world, rng = World(0), np.random.default_rng(7)
    state = ModelState(head={}, centroids=world.centroids)
    honest = {
        name: Update(name, "", {"sums": {"sums": 0.8 * s.rows * s.counts[:, None], "counts": s.counts}})
        for name, s in world.sites.items()
    }
    claimed = np.full(CLASSES, 10**7)
    rubbish = directions(rng.standard_normal((CLASSES, DIM))) * claimed[:, None]
    attacked = honest | {
        name: Update(name, "", {"sums": {"sums": rubbish, "counts": claimed}}) for name in HOSTILE
    }

    def polished(merge: str, updates: dict[str, Update]) -> np.ndarray:
        config = load_config({"preset": "fuss-ref", "centroids.merge": merge})
        return directions(kmeans_pass(state, updates, config).centroids)

    exact = polished("fedcc-maximin", honest)
    assert (polished("fedcc-maximin", attacked) * exact).sum(axis=1).max() < 0.8
    assert (polished(rule, honest) * exact).sum(axis=1).min() > 0.95
    assert (polished(rule, attacked) * exact).sum(axis=1).min() > 0.9
