"""Are sites listed as people count?"""

from __future__ import annotations

from common.order import natural_items


def test_site_2_comes_before_site_10() -> None:
    named = {"site-10": 1, "b": 2, "site-2": 3, "site-1": 4}
    assert [name for name, _ in natural_items(named)] == ["b", "site-1", "site-2", "site-10"]
