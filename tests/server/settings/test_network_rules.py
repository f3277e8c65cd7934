"""Does a run say when a part of it begins late, or never?"""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import UserError
from common.settings.schema import RunConfig
from server.settings.network_rules import network_plan
from server.tasks.base import load_settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, ["clusters none"]),
        ({"clusters": {"layers": "bn"}}, ["clusters bn"]),
        ({"clusters": {"layers": "bn", "bootstrap_rounds": 4}}, ["clusters bn from round 5"]),
        (
            {"clusters": {"layers": "bn", "bootstrap_rounds": 9}},
            ["clusters bn from round 10, which this run does not reach"],
        ),
        (
            {"task": "adaptation", "teacher": {"update": "rounds", "start": 9}},
            ["clusters none", "teacher updated: rounds"],
        ),
        (
            {"task": "adaptation", "teacher": {"update": "mean", "start": 8}},
            ["clusters none", "teacher updated: mean from round 9"],
        ),
        (
            {"task": "adaptation", "teacher": {"update": "mean", "start": 9}},
            ["clusters none", "teacher updated: mean from round 10, which this run does not reach"],
        ),
    ],
)
def test_what_begins_late_is_said(settings: dict[str, Any], said: list[str]) -> None:
    config = RunConfig.model_validate({"task": "supervised", "rounds": 9} | settings)
    assert network_plan(config, 11).endswith(", batch norms shared, " + ", ".join(said))


@pytest.mark.parametrize("key", ["output-stride=16", "rates=6,12,18", "dropout=0.1"])
def test_the_small_network_refuses_what_it_does_not_have(key: str) -> None:
    name, _, value = key.partition("=")
    given = {f"network.{name}": int(value) if value.isdigit() else float(value) if "." in value else value}
    with pytest.raises(UserError, match=f"network.{name}"):
        load_settings({"task": "supervised", "network.architecture": "small"} | given)


def test_an_unknown_network_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="small"):
        load_settings({"task": "supervised", "network.architecture": "smal"})
