"""Which settings are refused beside secure summation or noise, and does the sentence say why?"""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import UserError
from server.tasks.base import load_settings

SECURE = {"privacy.secure-sum": True}
NOISE = {
    "privacy.noise-multiplier": 1.0,
    "privacy.clip-sums": 0.4,
    "privacy.clip-scatter": 1.0,
    "privacy.feature-norm": 10.0,
}
HEADS = {"preset": "fuss-clean", "centroids.merge": "lloyd", "aggregation.weights": "uniform"}


@pytest.mark.parametrize("settings", [{}, SECURE, NOISE, NOISE | SECURE, NOISE | {"privacy.unit": "image"}])
def test_the_default_preset_goes_with_both(settings: dict[str, Any]) -> None:
    config = load_settings(settings)
    assert config.privacy.totals_only == bool(settings)
    trained = HEADS | {"privacy.clip-norm": 1.0} | settings | {"privacy.unit": "site"}
    assert load_settings(trained).privacy.totals_only == bool(settings)


@pytest.mark.parametrize("merge", ["lloyd", "mean"])
def test_rules_that_need_sums_only_go_with_secure_summation(merge: str) -> None:
    assert load_settings(SECURE | {"preset": "fuss-ref", "centroids.merge": merge}).privacy.secure_sum


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum", "multi-krum"])
@pytest.mark.parametrize("privacy", [SECURE, NOISE | {"privacy.clip-norm": 1.0}])
def test_rules_that_compare_heads_are_refused(rule: str, privacy: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"aggregation.rule '{rule}' compares the heads of single sites"):
        load_settings(HEADS | privacy | {"aggregation.rule": rule})


@pytest.mark.parametrize(
    "merge", ["fedcc-kmeans", "fedcc-maximin", "matched", "matched-median", "matched-geometric"]
)
def test_rules_that_compare_centroids_are_refused(merge: str) -> None:
    with pytest.raises(UserError, match=rf"centroids.merge '{merge}' compares the centroids"):
        load_settings(HEADS | SECURE | {"centroids.merge": merge})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (SECURE | {"centroids.share": "head"}, "keeps parts of single sites"),
        (SECURE | {"aggregation.keep-least-moved": True}, "picks a single site's model"),
        (SECURE | {"task": "supervised"}, "not task 'supervised'"),
        (SECURE | {"sites.per-round": 1}, "hides a site among others"),
        (SECURE | {"sites.expected": 1}, "hides a site among others"),
        (SECURE | {"sites.expected": 2}, "needs privacy.colluders"),
        (SECURE | {"sites.per-round": 3, "privacy.colluders": 2}, "needs privacy.colluders"),
        (NOISE | {"eval.where": "sites"}, "confusion matrices without noise"),
        (NOISE | {"privacy.clip-sums": 0.0}, "privacy.clip-sums is 0, but noise only hides what is clipped"),
        (NOISE | {"privacy.feature-norm": 0.0}, "privacy.feature-norm is 0"),
        (HEADS | NOISE, "privacy.clip-norm is 0"),
        (
            HEADS | NOISE | {"privacy.clip-norm": 1.0, "privacy.unit": "image"},
            "clipped for a site as a whole",
        ),
        (
            HEADS | NOISE | {"privacy.clip-norm": 1.0, "aggregation.weights": "images"},
            "sites that weigh the same",
        ),
        (HEADS | NOISE | {"privacy.clip-norm": 1.0, "centroids.merge": "mean"}, "there is no noise"),
        ({"privacy.quorum": 0.5}, "privacy.quorum"),
        ({"privacy.delta": 0}, "privacy.delta"),
        ({"privacy.noise-multiplier": -1}, "privacy.noise-multiplier"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_settings(settings)
