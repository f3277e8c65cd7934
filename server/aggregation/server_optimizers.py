"""Server optimizers: step from the current head towards the average of the sites.

The average minus the current head is a pseudo-gradient. FedAvgM (Hsu, Qi and Brown, 2019) adds momentum to
it; FedAdam, FedYogi and FedAdagrad (Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2)
adapt the step per coordinate. `server_step` is a pure function; its state is a flat dict of float64 arrays that fits
into a checkpoint, so that a resumed run continues with the same bits. A new optimizer is one more file of this
folder that registers with `OPTIMIZERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from common.registry import Registry
from common.settings.federation import Aggregation
from common.wire import Arrays

_Floats = NDArray[np.float64]

# Takes the pseudo-gradient and both moments; returns the step to add to the head and the moments to keep.
Optimizer = Callable[[_Floats, _Floats, _Floats, Aggregation], tuple[_Floats, _Floats, _Floats | None]]

OPTIMIZERS: Registry[Optimizer | None, None] = Registry("server optimizer", "server.aggregation")

# Prefix of the state arrays that hold the momentum (m in the paper).
FIRST = "first."

# Prefix of the state arrays that hold the second moment (v in the paper).
SECOND = "second."


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

    SavedMoments move before x does. m starts at 0 and v at tau^2, as in the paper (no bias correction). Integer
    arrays have no gradient and are taken from the average. Raises `UserError` if average or state do not
    fit the current head.
    """
    if set(current) != set(average):
        differing = ", ".join(sorted(set(current) ^ set(average)))
        raise UserError(f"The averaged head and the server's head differ in: {differing}.")
    optimizer, starts = OPTIMIZERS.get(settings.optimizer), {FIRST: 0.0, SECOND: settings.tau**2}
    new: Arrays = {}
    new_state: Arrays = {}
    for name in sorted(current):
        old, mean = current[name], average[name]
        if old.shape != mean.shape or old.dtype != mean.dtype:
            raise UserError(
                f"Averaged array '{name}' is {mean.dtype} {mean.shape}; "
                f"the server's is {old.dtype} {old.shape}."
            )
        if optimizer is None or old.dtype.kind != "f":
            # the average itself; counts of batches have no gradient anyway
            new[name] = mean.copy()
            continue
        x = old.astype(np.float64)
        first, second = (_moment(state, key + name, x.shape, start) for key, start in starts.items())
        step, first, kept = optimizer(mean.astype(np.float64) - x, first, second, settings)
        new[name] = (x + step).astype(old.dtype)
        new_state |= {FIRST + name: first} | ({} if kept is None else {SECOND + name: kept})
    return new, new_state


OPTIMIZERS.register("none", summary="the average itself", facts=None)(None)


@OPTIMIZERS.register("momentum", summary="running sum of the changes (FedAvgM)", facts=None)
def _momentum(
    delta: _Floats, first: _Floats, second: _Floats, settings: Aggregation
) -> tuple[_Floats, _Floats, None]:
    first = settings.momentum * first + delta
    return settings.lr * first, first, None


def _adaptive(second_moment: Callable[[_Floats, _Floats, float], _Floats]) -> Optimizer:
    """Return an optimizer that divides the running mean of the changes by the root of their second moment."""

    def step(
        delta: _Floats, first: _Floats, second: _Floats, settings: Aggregation
    ) -> tuple[_Floats, _Floats, _Floats]:
        first = settings.momentum * first + (1.0 - settings.momentum) * delta
        second = second_moment(second, delta**2, settings.second_moment)
        return settings.lr * first / (np.sqrt(second) + settings.tau), first, second

    return step


OPTIMIZERS.register("adam", summary="steps by the running mean of squared changes (FedAdam)", facts=None)(
    _adaptive(lambda v, square, b2: b2 * v + (1.0 - b2) * square)
)
# v moves towards the new square by a step of the square's own size, so it shrinks slowly and stays >= 0
OPTIMIZERS.register("yogi", summary="as adam, with steps that grow slowly (FedYogi)", facts=None)(
    _adaptive(lambda v, square, b2: v - (1.0 - b2) * square * np.sign(v - square))
)
OPTIMIZERS.register("adagrad", summary="steps by the sum of squared changes (FedAdagrad)", facts=None)(
    _adaptive(lambda v, square, _: v + square)
)


def _moment(
    state: Mapping[str, np.ndarray], key: str, shape: tuple[int, ...], start: float
) -> NDArray[np.float64]:
    """Return a moment of the state, or its first value."""
    if key not in state:
        return np.full(shape, start)
    moment = np.asarray(state[key], dtype=np.float64)
    if moment.shape != shape:
        raise UserError(
            f"The saved optimizer state '{key}' has shape {moment.shape}; the head has {shape}: "
            "it comes from another model, so start without it."
        )
    return moment
