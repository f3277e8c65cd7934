"""Is a rule that merges refused where every site keeps its own, whatever the task?"""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import UserError
from server.tasks.base import load_settings

STEPS = {"preset": "fuss-ref"}


@pytest.mark.parametrize(("key", "value"), [("rule", "krum"), ("optimizer", "adam")])
@pytest.mark.parametrize(
    ("task", "share"),
    [
        (STEPS, "none"),
        (STEPS, "centroids"),
        ({"task": "supervised"}, "none"),
        ({"task": "adaptation"}, "none"),
    ],
)
def test_a_rule_is_refused_where_nothing_is_merged(
    task: dict[str, Any], share: str, key: str, value: str
) -> None:
    words = f"aggregation.{key} is '{value}', but centroids.share is '{share}', where every site keeps"
    with pytest.raises(UserError, match=words):
        load_settings(task | {"centroids.share": share, f"aggregation.{key}": value})
    assert load_settings(task | {"centroids.share": share}).centroids.share == share
    shared = load_settings(task | {"centroids.share": "both", f"aggregation.{key}": value})
    assert getattr(shared.aggregation, key) == value


def test_heads_that_are_shared_without_centroids_are_merged_by_any_rule() -> None:
    assert (
        load_settings(STEPS | {"centroids.share": "head", "aggregation.rule": "krum"}).aggregation.rule
        == "krum"
    )
