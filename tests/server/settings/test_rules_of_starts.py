"""Settings of several starts are refused where an objective fits one set of centroids."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import UserError
from server.tasks.base import load_settings


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"things.each-picture": "one"}, "things.each-picture"),
        ({"codes.center": "auto"}, "codes.center"),
        ({"centroids.over": 40}, "centroids.over"),
        ({"centroids.starts": 4}, "centroids.starts"),
        ({"preset": "label-free", "centroids.momentum": 0.5}, "centroids.momentum"),
        ({"task": "student", "preset": "label-free", "model.clusters": 255}, "model.clusters"),
    ],
)
def test_what_would_be_ignored_or_break_is_named(given: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        load_settings(given)
    assert load_settings({"preset": "label-free", "things.each-picture": "one"}).centerings == (False,)
