"""Do precision and recall of correspondences come out as counted by hand?"""

from __future__ import annotations

import numpy as np
import pytest

from common.evaluation.correspondences import precision_recall


def test_pairs_by_hand() -> None:
    found = precision_recall(np.array([0.1, 0.9, 0.5, 0.7]), np.array([False, True, True, False]))
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["precision"][0] == 1.0 and found["precision"][-1] == pytest.approx(2 / 3, abs=1e-4)
    assert found["recall"][0] == 0.5 and found["recall"][-1] == 1.0


def test_an_order_that_says_nothing_is_as_good_as_chance() -> None:
    generator = np.random.default_rng(0)
    same = generator.random(20_000) < 0.3
    assert precision_recall(generator.random(20_000), same)["average_precision"] == pytest.approx(
        0.3, abs=0.02
    )
