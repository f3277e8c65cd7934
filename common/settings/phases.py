"""What do the sites do in a round? Server and sites have to agree on it."""

from __future__ import annotations

from typing import Literal

from common.settings.schema import RunConfig

Phase = Literal["train", "scatter", "clusters"]


def phase_of(config: RunConfig, round_number: int) -> Phase:
    """Return the work of a round, counted from 1.

    Objectives that take gradient steps train in every round. The spectral one needs one round of sums for
    the projection, and then passes of exact k-means.
    """
    if config.loss.objective != "spectral":
        return "train"
    return "scatter" if round_number == 1 else "clusters"
