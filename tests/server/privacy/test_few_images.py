"""Does the server say which sites are so small that their plain sums tell of single images?"""

from __future__ import annotations

import logging
from typing import Any

import pytest

from common.settings.load import load_config
from server.privacy.totals import warn_of_few_images

IMAGES = {"site-10": 29, "site-2": 1, "site-3": 30}


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({}, True),
        ({"preset": "fuss-clean", "centroids.polish-passes": 1}, True),
        ({"preset": "fuss-clean"}, False),  # heads are no sums
        ({"privacy.secure-sum": True}, False),
        ({"privacy.minimum-images": 1}, False),
        ({"task": "supervised"}, False),
    ],
)
def test_small_sites_are_named_in_the_order_of_their_numbers(
    settings: dict[str, Any], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_few_images(load_config(settings), IMAGES)
    assert ("2 of 3 sites hold fewer than 30 images (site-2, site-10)" in caplog.text) is warned
