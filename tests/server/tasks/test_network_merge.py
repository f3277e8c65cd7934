"""Merging whole networks against a loop written from the rule, and the cases that published codes get wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.settings.load import load_config
from common.styles.clusters import StyleClusters
from common.wire import Arrays, Update
from server.adaptation.teachers import update_teachers
from server.states import EVERYONE, Layout, NetworkState
from server.tasks.network_merge import merge_networks

LAYOUT = Layout(
    parameters=frozenset({"conv", "head", "norm"}),
    statistics=frozenset({"mean"}),
)
KEYS = ("conv", "head", "norm", "mean")


def network(value: float) -> Arrays:
    return {key: np.full(2, value + index, dtype=np.float32) for index, key in enumerate(KEYS)}


def update(site: str, value: float, images: int = 1) -> Update:
    groups = LAYOUT.split(network(value))
    return Update(site=site, weights_hash="", groups=groups, facts={"images": images, "batches": 1})


def merge(
    state: NetworkState, values: dict[str, float], layout: Layout = LAYOUT, **settings: Any
) -> NetworkState:
    given = {key.replace("__", ".").replace("_", "-"): v for key, v in settings.items()}
    config = load_config({"task": "supervised"} | given)
    updates = {site: update(site, value) for site, value in values.items()}
    weights = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 2.0, "stranger": 1.0}
    return merge_networks(state, updates, weights, layout, config)


def grouped(layout: Layout, assignment: dict[str, int], value: float = 0.0) -> NetworkState:
    state = NetworkState(network(value))
    centres = np.zeros((1 + max(assignment.values()), 3))
    return state.with_clusters(StyleClusters(centres, assignment), layout)


def test_shared_names_are_the_weighted_mean_and_statistics_too() -> None:
    merged = merge(NetworkState(network(0)), {"a": 0.0, "b": 4.0})
    for index, key in enumerate(KEYS):
        np.testing.assert_allclose(merged.model[key], (1 * 0 + 3 * 4) / 4 + index)


def test_the_server_optimiser_moves_parameters_and_leaves_statistics_to_the_mean() -> None:
    merged = merge(
        NetworkState(network(0)), {"a": 4.0}, aggregation__optimizer="momentum", aggregation__lr=0.5
    )
    np.testing.assert_allclose(merged.model["conv"], 2.0)
    np.testing.assert_allclose(merged.model["mean"], 7.0)
    assert {key.partition(".")[2] for key in merged.memory} == {"conv", "head", "norm"}


def test_a_cluster_nobody_answered_for_keeps_its_own() -> None:
    layout = replace(LAYOUT, cluster=frozenset({"head"}))
    state = grouped(layout, {"a": 0, "b": 1, "c": 1})
    first = merge(state, {"a": 10.0, "b": 20.0, "c": 40.0}, layout)
    np.testing.assert_allclose(first.clusters[0]["head"], 11.0)
    np.testing.assert_allclose(first.clusters[1]["head"], (3 * 21 + 2 * 41) / 5)
    second = merge(first, {"b": 50.0}, layout)
    np.testing.assert_allclose(second.clusters[0]["head"], 11.0)
    np.testing.assert_allclose(second.clusters[1]["head"], 51.0)
    np.testing.assert_allclose(second.model["conv"], 50.0)
    np.testing.assert_allclose(second.model["head"], (11 + 51) / 2)  # every cluster counts once
    np.testing.assert_allclose(second.model_for("a")["head"], 11.0)
    np.testing.assert_allclose(second.model_for("b")["head"], 51.0)
    np.testing.assert_allclose(second.model_for("stranger")["head"], 31.0)


def test_before_clusters_exist_their_names_are_shared() -> None:
    layout = replace(LAYOUT, cluster=frozenset({"head"}))
    merged = merge(NetworkState(network(0)), {"a": 0.0, "b": 4.0}, layout)
    np.testing.assert_allclose(merged.model["head"], 4.0)
    assert merged.clusters == {}


def test_every_name_may_belong_to_clusters() -> None:
    layout = replace(LAYOUT, cluster=frozenset(KEYS))
    merged = merge(grouped(layout, {"a": 0, "b": 1}), {"a": 2.0, "b": 4.0}, layout)
    np.testing.assert_allclose(merged.model["conv"], 3.0)
    np.testing.assert_allclose(merged.model_for("b")["mean"], 7.0)


def test_a_sites_own_statistics_stay_with_it() -> None:
    layout = replace(LAYOUT, site=frozenset({"mean"}))
    merged = merge(NetworkState(network(0)), {"a": 0.0, "b": 4.0}, layout)
    np.testing.assert_allclose(merged.model_for("a")["mean"], 3.0)
    np.testing.assert_allclose(merged.model_for("b")["mean"], 7.0)
    np.testing.assert_allclose(merged.model["mean"], (3 + 3 * 7) / 4)
    np.testing.assert_allclose(merged.model_for("a")["conv"], 3.0)
    resumed = NetworkState.from_arrays(merged.model, merged.to_extra())
    for state in (merged, resumed):
        later = merge(state, {"b": 8.0}, layout)
        np.testing.assert_allclose(later.model_for("a")["mean"], 3.0)
        np.testing.assert_allclose(
            later.model["mean"], (3 + 3 * 11) / 4
        )  # the absent site is an owner as before
    grown = merge(later, {"c": 1.0}, layout)
    np.testing.assert_allclose(grown.model_for("stranger")["mean"], (3 + 3 * 11 + 2 * 4) / 6)


def test_the_order_of_answers_changes_nothing() -> None:
    values = {"a": 0.1, "b": 0.2, "c": 0.7}
    merged = merge(NetworkState(network(0)), values)
    mirrored = merge(NetworkState(network(0)), dict(reversed(values.items())))
    for key in KEYS:
        assert merged.model[key].tobytes() == mirrored.model[key].tobytes()


def test_a_checkpoint_holds_everything() -> None:
    layout = replace(LAYOUT, cluster=frozenset({"head"}), site=frozenset({"mean"}))
    state = merge(grouped(layout, {"a": 0, "b": 1}), {"a": 1.0, "b": 2.0}, layout)
    state = replace(
        state,
        pretrained=network(9),
        teachers={"0": network(5)},
        averaged=3,
        memory={"first.conv": np.ones(2)},
    )
    again = NetworkState.from_arrays(state.model, state.to_extra())
    assert again.grouping is not None and again.grouping.assignment == {"a": 0, "b": 1}
    assert again.averaged == 3
    for mine, other in ((state.to_extra(), again.to_extra()), (state.model, again.model)):
        assert mine.keys() == other.keys()
        assert all(np.array_equal(mine[key], other[key]) for key in mine)


@pytest.mark.parametrize("update", ["never", "student"])
def test_some_teachers_never_change(update: str) -> None:
    settings = load_config({"teacher.update": update}).teacher
    state = NetworkState(network(1), pretrained=network(0))
    assert update_teachers(state, 1, settings, LAYOUT).teacher_for("a") is state.pretrained


def test_a_teacher_is_copied_every_so_many_rounds() -> None:
    settings = load_config({"teacher.update": "rounds", "teacher.every": 3}).teacher
    state = NetworkState(network(0), pretrained=network(0))
    seen = []
    for number in range(1, 8):
        state = update_teachers(replace(state, model=network(number)), number, settings, LAYOUT)
        seen.append(float(state.teacher_for("a")["conv"][0]))
    assert seen == [1, 1, 1, 4, 4, 4, 7]


def test_a_mean_teacher_is_the_arithmetic_mean_with_the_newest_statistics() -> None:
    settings = load_config({"teacher.update": "mean", "teacher.every": 2, "teacher.start": 1}).teacher
    state = NetworkState(network(0), pretrained=network(100))
    for number in range(1, 7):
        state = update_teachers(replace(state, model=network(number)), number, settings, LAYOUT)
        if number == 1:
            assert state.teacher_for("a") is state.pretrained
    np.testing.assert_allclose(state.teachers[EVERYONE]["conv"], (2 + 4 + 6) / 3)
    np.testing.assert_allclose(state.teachers[EVERYONE]["mean"], 6 + 3)
    assert state.averaged == 3


def test_a_mean_whose_shared_teacher_is_missing_begins_with_the_newest_model() -> None:
    settings = load_config({"teacher.update": "mean"}).teacher
    state = grouped(LAYOUT, {"a": 0, "b": 1}, 4.0)
    earlier = replace(state, teachers={"0": network(2), "1": network(2)}, averaged=1)
    found = update_teachers(earlier, 2, settings, LAYOUT)
    np.testing.assert_allclose(found.teachers[EVERYONE]["conv"], 4)
    np.testing.assert_allclose(found.teachers["0"]["conv"], (2 + 4) / 2)


def test_every_cluster_has_a_teacher_of_its_own() -> None:
    layout = replace(LAYOUT, cluster=frozenset({"head"}))
    settings = load_config({"teacher.update": "rounds"}).teacher
    state = merge(grouped(layout, {"a": 0, "b": 1}), {"a": 10.0, "b": 20.0}, layout)
    state = update_teachers(state, 2, settings, layout)
    np.testing.assert_allclose(state.teacher_for("a")["head"], 11.0)
    np.testing.assert_allclose(state.teacher_for("b")["head"], 21.0)
    np.testing.assert_allclose(state.teacher_for("a")["conv"], state.teacher_for("b")["conv"])


@pytest.mark.parametrize("update", ["rounds", "mean"])
def test_a_site_without_a_cluster_learns_from_the_shared_model(update: str) -> None:
    """Its style was no style, or came never: it is trained all the same."""
    layout = replace(LAYOUT, cluster=frozenset({"head"}))
    settings = load_config({"teacher.update": update}).teacher
    state = replace(grouped(layout, {"a": 0, "b": 1}), pretrained=network(100))
    for number in (1, 2):
        state = merge(state, {"a": 10.0 * number, "b": 20.0 * number, "stranger": 5.0}, layout)
        state = update_teachers(state, number, settings, layout)
    expected = {"rounds": state.model["head"], "mean": state.teachers[EVERYONE]["head"]}[update]
    np.testing.assert_allclose(state.teacher_for("stranger")["head"], expected)
    assert float(expected[0]) < 50
