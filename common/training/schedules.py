"""Learning rate schedules over all steps of a run.

The schedule runs over all optimiser steps of a run. A federated run has many short trainings: each starts where
the rounds before it ended, or its learning rate would never move.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from common.settings.network import Sgd


def learning_rate(sgd: Sgd, step: int, total: int) -> float:
    """Return the learning rate of one step.

    With W = warmup * total, rounded, the first W steps rise in a line, (step + 1) / (W + 1); the schedule
    covers the others. With p the share of those that lies behind, it multiplies ``sgd.lr`` by 1 (constant),
    (1 - p)^power (poly; Liu et al., "ParseNet", 2015), (1 + cos(pi p)) / 2 (cosine) or 1 - p (linear).

    Args:
        sgd: the settings.
        step: number of the step in the whole run, from 0.
        total: steps of the whole run.

    Raises ValueError for a step outside of the run.
    """
    if not 0 <= step < total:
        raise ValueError(f"step {step} is outside of a run of {total} steps, which are counted from 0")
    warmup = round(sgd.warmup * total)
    if step < warmup:
        return sgd.lr * (step + 1) / (warmup + 1)
    share = (step - warmup) / (total - warmup)
    return sgd.lr * _FACTORS[sgd.schedule](sgd, share)


_FACTORS: dict[str, Callable[[Sgd, float], float]] = {
    "constant": lambda _sgd, _share: 1.0,
    "poly": lambda sgd, share: float((1 - share) ** sgd.power),
    "cosine": lambda _sgd, share: (1 + math.cos(math.pi * share)) / 2,
    "linear": lambda _sgd, share: 1 - share,
}
