"""Do the parts of a round's updates end where the settings say: shared, or with their site, by one rule for all?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common import wire
from common.errors import UserError
from common.settings.load import load_config
from common.settings.schema import RunConfig
from server.states import ModelState
from server.tasks.base import load_settings
from server.tasks.unsupervised import UnsupervisedTraining
from server.tasks.unsupervised_merge import kmeans_pass, merge_round

F32 = np.float32
START = ModelState(
    {"linear.weight": np.zeros((2, 3), F32)}, np.eye(2, dtype=F32), shared={"decoder": np.zeros(2, F32)}
)
HOSTILE = "e"
SITES = "abcde"


def config_of(**settings: Any) -> RunConfig:
    given = {key.replace("__", ".").replace("_", "-"): value for key, value in settings.items()}
    return load_config({"preset": "fuss-ref", "centroids.merge": "mean"} | given)


def update(name: str, head: float, beside: float, images: int = 1, **metrics: float) -> wire.Update:
    return wire.Update(
        name,
        "",
        groups={
            "head": {"linear.weight": np.full((2, 3), head, F32)},
            "shared": {"decoder": np.full(2, beside, F32)},
            "centroids": {"centroids": np.full((2, 2), head, F32), "counts": np.ones(2, int)},
        },
        metrics=metrics,
        facts={"images": images, "batches": images},
    )


def attacked() -> dict[str, wire.Update]:
    """Four honest sites, and one far away that claims to hold nearly all images; 'c' lies between the heads."""
    honest = {name: update(name, 1 + 0.1 * i, 10 + i) for i, name in enumerate("abd")}
    honest["c"] = update("c", 1.11, 12.5)
    return honest | {HOSTILE: update(HOSTILE, 1e6, -1e6, images=10**6)}


@pytest.mark.parametrize("share", ["none", "centroids"])
def test_what_is_trained_beside_a_head_stays_where_the_head_stays(share: str) -> None:
    sent = {"a": update("a", 1, 10), "b": update("b", 2, 20)}
    merged = merge_round(START, sent, config_of(centroids__share=share))
    np.testing.assert_array_equal(merged.shared["decoder"], START.shared["decoder"])
    for name, beside in (("a", 10), ("b", 20)):
        np.testing.assert_array_equal(merged.groups_for(name)["shared"]["decoder"], np.full(2, beside))
    back = ModelState.from_arrays(merged.head, merged.centroids, merged.to_extra())
    np.testing.assert_array_equal(back.groups_for("b")["shared"]["decoder"], np.full(2, 20))


@pytest.mark.parametrize("share", ["both", "head"])
def test_what_is_trained_beside_a_shared_head_is_averaged_like_it(share: str) -> None:
    sent = {"a": update("a", 1, 10, images=3), "b": update("b", 5, 20)}
    merged = merge_round(START, sent, config_of(centroids__share=share, aggregation__weights="images"))
    np.testing.assert_allclose(merged.shared["decoder"], 12.5)
    np.testing.assert_allclose(merged.head["linear.weight"], 2)
    assert not any("shared" in groups for groups in merged.private.values())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rule": "median"}, 11.0),  # of 10, 11, 12, 12.5 and -1e6
        ({"rule": "trimmed-mean"}, 11.0),  # of 10, 11, 12: one cut at either end
        ({"rule": "krum", "malicious": 1}, 12.5),  # c, whose head is 0.01 and 0.09 from its nearest two
        ({"rule": "multi-krum", "malicious": 1}, 45.5 / 4),  # all but the hostile one
    ],
)
def test_a_robust_rule_covers_what_is_trained_beside_the_head(
    settings: dict[str, Any], expected: float
) -> None:
    given = {f"aggregation__{key}": value for key, value in settings.items()}
    config = config_of(aggregation__weights="images", **given)
    merged = merge_round(START, attacked(), config)
    np.testing.assert_allclose(merged.shared["decoder"], expected)
    assert np.abs(merged.head["linear.weight"]).max() < 2


def test_krum_takes_head_and_the_rest_from_one_site_whatever_it_weighs() -> None:
    """The chosen site's head is central, the arrays beside it are not; a weight of 0 does not matter."""
    sent = attacked()
    sent["c"] = update("c", 1.11, 99, images=0)
    config = config_of(aggregation__rule="krum", aggregation__malicious=1)
    merged = merge_round(START, sent, config)
    assert merged.head["linear.weight"][0, 0] == F32(1.11)
    np.testing.assert_array_equal(merged.shared["decoder"], 99)


def test_a_site_that_keeps_its_model_keeps_all_of_it_but_counts_under_the_shared_one() -> None:
    config = config_of(aggregation__keep_least_moved=True)
    sent = {"a": update("a", 1, 10, displacement=0.5), "b": update("b", 3, 30, displacement=0.2)}
    merged = merge_round(START, sent, config)
    assert set(merged.private) == {"b"}
    work = UnsupervisedTraining(config)
    trained = work.parts(merged, "b", 2, wire.TRAIN)[0]
    assert trained["head"]["linear.weight"][0, 0] == 3 and trained["shared"]["decoder"][0] == 30
    assert set(trained["centroids"]) == {"centroids"}
    for action in (wire.SUMS, wire.EVALUATE):
        for site in "ab":
            groups = work.parts(merged, site, 2, action)[0]
            assert groups["head"]["linear.weight"][0, 0] == 2 and groups["shared"]["decoder"][0] == 20


def test_a_site_counts_under_its_own_parts_where_they_are_not_shared() -> None:
    config = config_of(centroids__share="none")
    merged = merge_round(START, {"a": update("a", 1, 10), "b": update("b", 2, 20)}, config)
    for action in (wire.TRAIN, wire.SUMS, wire.EVALUATE):
        groups = UnsupervisedTraining(config).parts(merged, "b", 2, action)[0]
        assert groups["head"]["linear.weight"][0, 0] == 2


def sums(name: str, rows: list[list[float]]) -> wire.Update:
    counts = np.full(2, 10)
    return wire.Update(name, "", groups={"sums": {"sums": np.array(rows), "counts": counts}})


@pytest.mark.parametrize("share", ["none", "head"])
def test_momentum_is_a_running_total_of_each_sites_own_sums(share: str) -> None:
    config = config_of(centroids__share=share, centroids__merge="lloyd", centroids__momentum=0.5)
    first = {"a": sums("a", [[4, 0], [0, 4]]), "b": sums("b", [[8, 0], [0, 8]])}
    state = kmeans_pass(START, first, config)
    state = ModelState.from_arrays(state.head, state.centroids, state.to_extra())  # as after a resume
    second = {"a": sums("a", [[0, 4], [0, 4]]), "b": sums("b", [[0, 4], [0, 4]])}
    after = kmeans_pass(state, second, config)
    expected = {"a": [2, 4], "b": [4, 4]}  # half of the first sum, and the second
    for name, row in expected.items():
        found = after.groups_for(name)["centroids"]["centroids"]
        np.testing.assert_allclose(found, [row / np.linalg.norm(row), [0, 1]], atol=1e-6)
    polished = kmeans_pass(state, second, config, use_momentum=False)
    np.testing.assert_allclose(polished.groups_for("a")["centroids"]["centroids"][0], [0, 1], atol=1e-6)
    assert polished.memory.keys() == state.memory.keys()


def test_without_momentum_nothing_is_remembered() -> None:
    config = config_of(centroids__share="none", centroids__merge="lloyd")
    assert kmeans_pass(START, {"a": sums("a", [[4, 0], [0, 4]])}, config) == replace(
        START, private={"a": {"centroids": {"centroids": pytest.approx(np.eye(2))}}}
    )


def test_a_probe_is_reset_before_its_round_and_heads_stay() -> None:
    config = load_config({"preset": "fuss-clean", "centroids.reset-round": 3})
    training = UnsupervisedTraining(config)
    state = training.initial(8)
    own = {"centroids": {"centroids": state.centroids}, "head": state.head}
    state = replace(state, private={"a": own}, memory={"centroids/sums": state.centroids})

    def begun(number: int) -> ModelState:
        return training.begin(state, number, lambda *_: {}, ["a"])

    assert begun(2) is state and begun(4) is state
    reset = begun(3)
    assert not np.isclose(reset.centroids, state.centroids).any() and reset.memory == {}
    assert reset.head is state.head and set(reset.private["a"]) == {"head"}
    with pytest.raises(UserError, match=r"centroids\.reset-round is 3, but loss\.objective 'spectral'"):
        load_settings({"centroids.reset-round": 3})
