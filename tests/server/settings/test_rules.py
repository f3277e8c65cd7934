"""Is a setting of task `unsupervised` that could not act refused, in a sentence that says why?"""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import UserError
from common.settings.load import from_wire, load_config, to_wire
from server.settings.rules import conflict_of
from server.tasks.base import load_settings

STEPS = {"preset": "fuss-ref"}
KEEPER = {"aggregation.keep-least-moved": True}
IDLE: list[tuple[str, Any]] = [
    ("local.prox-mu", 0.01),
    ("local.moon-weight", 0.5),
    ("loss.reconstruction-weight", 0.1),
    ("loss.crf-weight", 0.1),
    ("aggregation.rule", "median"),
    ("aggregation.rule", "krum"),
    ("aggregation.optimizer", "adam"),
]


@pytest.mark.parametrize(("key", "value"), IDLE)
def test_what_acts_on_steps_or_on_trained_heads_is_refused_beside_the_closed_form(
    key: str, value: object
) -> None:
    with pytest.raises(UserError, match=rf"{key} is '?{value}'?, but loss.objective 'spectral' solves"):
        load_settings({key: value})
    assert load_settings(STEPS | {key: value}).to_flat()[key] == value
    networks = load_config({"task": "supervised", key: value})
    assert "spectral" not in str(conflict_of(networks))  # the objective plays no part


def test_augmented_views_are_refused_beside_the_closed_form() -> None:
    views = {"loss.augmentation-weight": 0.1, "cache.views": 1}
    with pytest.raises(UserError, match=r"loss.augmentation-weight is 0.1, but loss.objective 'spectral'"):
        load_settings(views)
    assert load_settings(STEPS | views).loss.augmentation_weight == 0.1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (KEEPER, "with centroids.merge 'lloyd' none moves them"),
        (STEPS | KEEPER | {"centroids.merge": "lloyd"}, "with centroids.merge 'lloyd' none moves them"),
        (STEPS | KEEPER | {"centroids.share": "head"}, "centroids.share is 'head'; set it to false"),
        (STEPS | KEEPER | {"centroids.share": "centroids"}, "centroids.share is 'centroids'"),
        (STEPS | KEEPER | {"centroids.share": "none"}, "centroids.share is 'none'"),
    ],
)
def test_a_keeper_is_refused_where_none_could_be_picked(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=r"aggregation.keep-least-moved") as caught:
        load_settings(settings)
    assert words in str(caught.value)


def test_what_can_act_is_taken() -> None:
    assert load_settings(STEPS | KEEPER | {"centroids.polish-passes": 2}).aggregation.keep_least_moved
    assert load_settings({"centroids.share": "none", "centroids.momentum": 0.5}).loss.objective == "spectral"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model.nonlinear": True}, "finds a linear head"),
        ({"centroids.merge": "mean"}, "needs centroids.merge 'lloyd', or a robust rule, not 'mean'"),
        ({"model.clusters": 9, "model.dim": 2}, "starts k-means from 8 directions"),
        ({"rounds": 1}, "needs 2 rounds"),
    ],
)
def test_what_the_closed_form_has_no_room_for_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_settings(settings)


def test_settings_that_travel_are_checked_alike() -> None:
    config = load_settings(STEPS | KEEPER)
    assert from_wire(to_wire(config)) == config
