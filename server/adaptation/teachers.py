"""EMA teachers, which label the pixels in a round of self-training.

Updated before a round, from the model that the round starts from. Every cluster has a teacher of its own: the
published code hands all clusters the last site's. Sites without a cluster have the shared model's. Source: LADD
(Shenaj et al., WACV 2023), section on teachers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from common.settings.network import Teacher
from common.wire import Arrays
from server.states import EVERYONE, Layout, NetworkState


def update_teachers(state: NetworkState, number: int, settings: Teacher, layout: Layout) -> NetworkState:
    """Return the state with the teachers of round ``number`` (counted from 1).

    never, student: no teacher beside the pretrained model. rounds: copies of the models that the round starts
    from, in rounds 1, 1 + every, ... mean: from the first such round after ``start`` on, the mean of the
    parameters seen at those rounds, with the newest statistics.
    """
    if settings.update in ("never", "student"):
        return state
    first = settings.start + 1 if settings.update == "mean" else 1
    # counted from the first update, so that the first round in question always makes one
    if number < first or (number - first) % settings.every:
        return state
    current: Mapping[str, Arrays] = {EVERYONE: state.model} | {
        str(cluster): state.cluster_model(cluster) for cluster in sorted(state.clusters)
    }
    if settings.update == "rounds":
        return replace(state, teachers=dict(current))
    teachers: dict[str, Arrays] = {}
    for name, model in current.items():
        before = state.teachers.get(name, state.teachers.get(EVERYONE))
        old = None if before is None else {key: before[key] for key in layout.parameters}
        # checkpoints of an earlier release lack some teachers
        seen = state.averaged if old is not None else 0
        mean, _ = running_mean(old, seen, {key: model[key] for key in layout.parameters})
        teachers[name] = model | mean
    return replace(state, teachers=teachers, averaged=state.averaged + 1)


_Arrays = Mapping[str, npt.NDArray[Any]]


def running_mean(mean: _Arrays | None, count: int, model: _Arrays) -> tuple[dict[str, npt.NDArray[Any]], int]:
    """Return the mean of ``count + 1`` models, ``(count * mean + model) / (count + 1)``, and that number.

    ``mean`` is the mean of the first ``count`` models, ``None`` with 0. _Arrays keep the dtype of ``model``;
    the sum is float64, so each call rounds once. Nothing that is returned shares memory with what was given.

    Meant for parameters. Running statistics of batch norms belong to the weights they were measured with:
    the mean of two models' statistics describes neither, so they are not given to this function.

    Source: stochastic weight averaging (Izmailov et al., UAI 2018) with a step of 1 / (n + 1), as the teacher
    of Shenaj et al., WACV 2023. Raises ValueError for models that do not fit together, naming the key.
    """
    if (mean is None) != (count == 0) or count < 0:
        raise ValueError(
            f"a mean of {count} models was given {'without' if mean is None else 'with'} its arrays"
        )
    for name, array in model.items():
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{name!r} holds {array.dtype}; only floating-point arrays have a mean")
    if mean is None:
        return {name: array.copy() for name, array in model.items()}, 1
    if unshared := mean.keys() ^ model.keys():
        raise ValueError(f"{min(unshared)!r} is in only one of the running mean and the model")
    for name, array in model.items():
        if mean[name].shape != array.shape:
            raise ValueError(
                f"{name!r} has shape {array.shape} in the model and {mean[name].shape} in the mean"
            )
    return {name: _one_more(mean[name], count, array) for name, array in model.items()}, count + 1


def _one_more(mean: npt.NDArray[Any], count: int, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    total = mean.astype(np.float64) * count + array
    return np.asarray(total / (count + 1)).astype(array.dtype)
