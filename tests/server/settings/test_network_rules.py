"""Does a run say when a part of it begins late, or never?"""

from __future__ import annotations

from typing import Any

import pytest

from common.settings.schema import RunConfig
from server.settings.network_rules import network_plan


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
