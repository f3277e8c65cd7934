"""Does each site get its part of the model, and does all of it survive a checkpoint?"""

from __future__ import annotations

import numpy as np
import pytest

from common.settings.load import load_config
from server.states import ModelState, private_groups

HEAD = {"linear.weight": np.ones((2, 3), np.float32)}
OWN = {"linear.weight": np.full((2, 3), 7, np.float32)}
CENTROIDS = np.arange(8, dtype=np.float32).reshape(4, 2)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        ("both", ()),
        ("head", ("centroids",)),
        ("centroids", ("head", "shared")),
        ("none", ("head", "shared", "centroids")),
    ],
)
def test_what_is_not_shared_stays_with_each_site(share: str, expected: tuple[str, ...]) -> None:
    assert private_groups(load_config({"centroids.share": share})) == expected


def test_a_site_gets_its_private_groups_in_place_of_the_shared_ones() -> None:
    state = ModelState(HEAD, CENTROIDS, private={"b": {"head": OWN}})
    assert state.groups_for("a")["head"] is HEAD and state.groups_for("b")["head"] is OWN
    for site in ("a", "b"):
        assert state.groups_for(site)["centroids"]["centroids"] is CENTROIDS
        assert set(state.groups_for(site)) == {"head", "centroids"}


def test_shared_arrays_travel_only_where_there_are_any() -> None:
    shared = {"prototypes": np.zeros(2, np.float32)}
    assert ModelState(HEAD, CENTROIDS, shared).groups_for("a")["shared"] is shared


def test_a_state_comes_back_from_a_checkpoints_arrays() -> None:
    state = ModelState(
        HEAD,
        CENTROIDS,
        shared={"decoder/weight": np.ones(2)},
        private={
            "site-0": {"head": OWN, "centroids": {"centroids": CENTROIDS + 1}},
            "clinic.7_b": {"head": {"a/b.weight": np.zeros(1)}},
        },
        memory={"optimizer/first/linear.weight": np.ones(3), "centroids/sums": np.zeros(1)},
    )
    extra = state.to_extra()
    assert all(isinstance(value, np.ndarray) for value in extra.values())
    back = ModelState.from_arrays(HEAD, CENTROIDS, dict(reversed(extra.items())))
    for field in ("shared", "memory"):
        assert getattr(back, field).keys() == getattr(state, field).keys()
    assert {s: {g: set(a) for g, a in groups.items()} for s, groups in back.private.items()} == {
        s: {g: set(a) for g, a in groups.items()} for s, groups in state.private.items()
    }
    np.testing.assert_array_equal(back.private["site-0"]["centroids"]["centroids"], CENTROIDS + 1)
    assert back.to_extra().keys() == extra.keys()
    assert ModelState.from_arrays(HEAD, CENTROIDS, {}) == ModelState(HEAD, CENTROIDS)
