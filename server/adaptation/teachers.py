"""EMA teachers, which label the pixels in a round of self-training.

Updated before a round, from the model that the round starts from. Every cluster has a teacher of its own: the
published code hands all clusters the last site's. Sites without a cluster have the shared model's. Source: LADD
(Shenaj et al., WACV 2023), section on teachers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from common.settings.network import Teacher
from common.training.running_mean import running_mean
from common.wire import Arrays
from server.states.network import EVERYONE, Layout, NetworkState


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
        seen = (
            state.averaged if old is not None else 0
        )  # checkpoints of an earlier release lack some teachers
        mean, _ = running_mean(old, seen, {key: model[key] for key in layout.parameters})
        teachers[name] = model | mean
    return replace(state, teachers=teachers, averaged=state.averaged + 1)
