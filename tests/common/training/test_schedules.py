"""Does the learning rate of a step follow its formula, over the whole run?"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

from common.settings.network import Sgd
from common.training.steps import learning_rate

SCHEDULES = ("constant", "poly", "cosine", "linear")


def rates(total: int, **settings: Any) -> list[float]:
    """The learning rates of all steps of a run."""
    sgd = Sgd(**{"lr": 0.1, **settings})
    return [learning_rate(sgd, step, total) for step in range(total)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.1, 0.1, 0.1, 0.1]),
        ("poly", [0.1, 0.1 * 0.75**0.9, 0.1 * 0.5**0.9, 0.1 * 0.25**0.9]),
        ("linear", [0.1, 0.075, 0.05, 0.025]),
        ("cosine", [0.1, 0.05 + 0.025 * math.sqrt(2), 0.05, 0.05 - 0.025 * math.sqrt(2)]),
    ],
)
def test_four_steps_by_hand(schedule: str, expected: list[float]) -> None:
    assert rates(4, schedule=schedule) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_rises_to_the_full_rate_and_then_the_schedule_begins(schedule: str) -> None:
    warm = rates(20, schedule=schedule, warmup=0.2)
    assert warm[:4] == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert warm[4:] == pytest.approx(rates(16, schedule=schedule))
    assert warm[4] == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rates_stay_above_zero_and_never_rise_without_warmup(schedule: str) -> None:
    values = rates(37, schedule=schedule)
    assert all(value > 0 for value in values)
    assert all(later <= earlier for earlier, later in pairwise(values))


def test_the_cut_into_rounds_does_not_change_the_schedule() -> None:
    sgd = Sgd(lr=0.1, schedule="poly")
    rounds = [[learning_rate(sgd, first + step, 12) for step in range(4)] for first in (0, 4, 8)]
    assert [rate for one in rounds for rate in one] == rates(12, schedule="poly")
    assert rounds[0] != rounds[1], "a federated schedule has to move from round to round"


@pytest.mark.parametrize(("step", "total"), [(-1, 4), (4, 4), (0, 0)])
def test_a_step_outside_of_the_run_is_refused(step: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"step {step} is outside of a run of {total}"):
        learning_rate(Sgd(), step, total)
