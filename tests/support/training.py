"""A training of some steps on labelled batches, its stepper included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from common.data.data_loader import ImageBatch
from common.settings.network import Sgd
from common.training.clock import SECONDS
from common.training.steps import Stepper, TrainedSteps, train_steps


def train_anew(
    model: Any,
    batches: Iterator[ImageBatch],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    sgd: Sgd,
    *,
    steps: int,
    total_steps: int,
    seed: int,
    first_step: int = 0,
    **options: Any,
) -> TrainedSteps:
    """Train ``model`` by a stepper of its own; ``options`` are those of `Stepper`."""
    stepper = Stepper(model, sgd, first_step=first_step, total_steps=total_steps, seed=seed, **options)
    return train_steps(stepper, batches, loss, steps)


def without_times(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a round that are the same in every run of it."""
    return {name: value for name, value in metrics.items() if not name.startswith(SECONDS)}
