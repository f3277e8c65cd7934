"""How does the server step from the current head towards the average of the sites?

The average minus the current head is a pseudo-gradient. FedAvgM (Hsu, Qi and Brown, 2019) adds momentum to
it; FedAdam, FedYogi and FedAdagrad (Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2)
adapt the step per coordinate. `server_step` is a pure function; its state is a flat dict of float64 arrays that fits
into a checkpoint, so that a resumed run continues with the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from common.settings.schema import Aggregation

Arrays = dict[str, np.ndarray]

FIRST = "first."
"""Prefix of the state arrays that hold the momentum (m in the paper)."""
SECOND = "second."
"""Prefix of the state arrays that hold the second moment (v in the paper)."""


def server_step(
    current: Mapping[str, np.ndarray],
    average: Mapping[str, np.ndarray],
    state: Mapping[str, np.ndarray],
    settings: Aggregation,
) -> tuple[Arrays, Arrays]:
    """Return the new head and the new state; an empty ``state`` starts afresh.

    With d = average - current, per coordinate:

    * none:      x <- average
    * momentum:  m <- b1 m + d,           x <- x + lr m
    * adam:      m <- b1 m + (1 - b1) d,  x <- x + lr m / (sqrt(v) + tau),  v <- b2 v + (1 - b2) d^2
    * yogi:      as adam, but             v <- v - (1 - b2) d^2 sign(v - d^2)
    * adagrad:   as adam, but             v <- v + d^2, so that steps only get shorter

    Moments move before x does. m starts at 0 and v at tau^2, as in the paper (no bias correction). Integer
    arrays have no gradient and are taken from the average. Raises `UserError` if average or state do not
    fit the current head.
    """
    if set(current) != set(average):
        differing = ", ".join(sorted(set(current) ^ set(average)))
        raise UserError(f"The averaged head and the server's head differ in: {differing}.")
    new: Arrays = {}
    new_state: Arrays = {}
    for name in sorted(current):
        old, mean = current[name], average[name]
        if old.shape != mean.shape or old.dtype != mean.dtype:
            raise UserError(
                f"Averaged array '{name}' is {mean.dtype} {mean.shape}; "
                f"the server's is {old.dtype} {old.shape}."
            )
        if settings.optimizer == "none" or old.dtype.kind != "f":
            new[name] = mean.copy()
            continue
        x = old.astype(np.float64)
        delta = mean.astype(np.float64) - x
        first = _moment(state, FIRST + name, old.shape, 0.0)
        if settings.optimizer == "momentum":
            first = settings.momentum * first + delta
            x = x + settings.lr * first
        else:
            first = settings.momentum * first + (1.0 - settings.momentum) * delta
            second = _moment(state, SECOND + name, old.shape, settings.tau**2)
            second = _second_moment(second, delta**2, settings)
            x = x + settings.lr * first / (np.sqrt(second) + settings.tau)
            new_state[SECOND + name] = second
        new_state[FIRST + name] = first
        new[name] = x.astype(old.dtype)
    return new, new_state


def _second_moment(
    second: NDArray[np.float64], squared: NDArray[np.float64], settings: Aggregation
) -> NDArray[np.float64]:
    fresh = 1.0 - settings.second_moment
    if settings.optimizer == "adam":
        return settings.second_moment * second + fresh * squared
    if settings.optimizer == "adagrad":
        return second + squared
    # Yogi moves towards the new square by a step of the square's own size, so v shrinks slowly and stays >= 0
    return second - fresh * squared * np.sign(second - squared)


def _moment(
    state: Mapping[str, np.ndarray], key: str, shape: tuple[int, ...], start: float
) -> NDArray[np.float64]:
    """Return a moment of the state, or its first value."""
    if key not in state:
        return np.full(shape, start)
    moment = np.asarray(state[key], dtype=np.float64)
    if moment.shape != shape:
        raise UserError(
            f"The saved optimiser state '{key}' has shape {moment.shape}; the head has {shape}: "
            "it comes from another model, so start without it."
        )
    return moment
