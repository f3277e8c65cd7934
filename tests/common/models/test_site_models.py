"""Is the model that a checkpoint gives the one that was trained, where sites keep parts of it to themselves?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.checkpoint import Checkpoint, checkpoint_path, save_checkpoint
from common.errors import UserError
from common.models.segmenter import Segmenter
from common.models.site_models import chosen_model, own_sites, unshared
from common.settings.load import load_config

F32 = np.float32
PARTS = {"both": (), "head": ("centroids",), "centroids": ("head",), "none": ("head", "centroids")}


def saved(
    share: str, sites: tuple[str, ...] = ("b", "a"), keeper: bool = False, **changes: Any
) -> Checkpoint:
    """A checkpoint whose shared arrays are 0 and whose sites' own are 1 for a, 2 for b and so on."""
    settings = {"preset": "fuss-ref", "model.nonlinear": False, "model.clusters": 3, "model.dim": 2}
    extra = {"memory/optimizer/first/linear.weight": np.zeros(1), "shared/decoder": np.zeros(1)}
    parts = ("head", "centroids") if keeper else PARTS[share]
    for site in sites if parts else ():
        value = 1 + ord(site[0]) - ord("a")
        if "head" in parts:
            extra[f"site/{site}/head/linear.weight"] = np.full((2, 4), value, F32)
            extra[f"site/{site}/head/linear.bias"] = np.full(2, value, F32)
        if "centroids" in parts:
            extra[f"site/{site}/centroids/centroids"] = np.full((3, 2), value, F32)
    given: dict[str, Any] = {
        "round": 1,
        "head": {"linear.weight": np.zeros((2, 4), F32), "linear.bias": np.zeros(2, F32)},
        "centroids": np.zeros((3, 2), F32),
        "config": load_config(settings | {"centroids.share": share}),
        "classes": None,
        "weights_hash": "",
        "channels": 4,
        "grid": (2, 2),
        "mapping": [0, 1, 2],
        "extra": extra,
    }
    return Checkpoint(**(given | changes))


def values(model: Checkpoint) -> tuple[float, float]:
    return float(model.head["linear.weight"][0, 0]), float(model.centroids[0, 0])


@pytest.mark.parametrize(
    ("share", "expected"), [("none", (2, 2)), ("head", (0, 2)), ("centroids", (2, 0))], ids=lambda v: str(v)
)
def test_a_sites_own_parts_come_in_the_place_of_the_shared_ones(
    share: str, expected: tuple[float, float]
) -> None:
    checkpoint = saved(share)
    assert own_sites(checkpoint) == ("a", "b") and unshared(checkpoint) == frozenset(PARTS[share])
    model = chosen_model(checkpoint, "run", "b")
    assert values(model) == expected
    assert model.mapping is None  # classes were not matched to this model's clusters
    assert Segmenter.from_checkpoint(model).centroids[0, 0] == expected[1]
    assert Segmenter.from_checkpoint(checkpoint, site="b").head.linear.bias[0] == expected[0]


@pytest.mark.parametrize("share", ["none", "head", "centroids"])
def test_without_a_name_the_untrained_parts_are_refused(share: str, tmp_path: Path) -> None:
    checkpoint = saved(share)
    with pytest.raises(UserError, match=rf"centroids.share is '{share}'.* give --site and one of: a, b"):
        chosen_model(checkpoint, "run")
    with pytest.raises(UserError, match=r"Checkpoint of run, round 1, holds no model that all sites share"):
        Segmenter.from_checkpoint(checkpoint)
    path = checkpoint_path(tmp_path, 1)
    save_checkpoint(path, checkpoint)
    with pytest.raises(UserError, match=r"round-0001\.safetensors holds no model"):
        Segmenter.from_checkpoint(path)


def test_a_part_that_is_shared_needs_no_name() -> None:
    assert values(chosen_model(saved("head"), "run", needed=("head",))) == (0, 0)
    with pytest.raises(UserError, match="no site was named"):
        chosen_model(saved("centroids"), "run", needed=("head",))


def test_beside_a_shared_model_one_site_may_keep_its_own() -> None:
    checkpoint = saved("both", ("b",), keeper=True)
    assert chosen_model(checkpoint, "run") is checkpoint
    assert values(chosen_model(checkpoint, "run", "b")) == (2, 2)


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"--site c was given, .* run holds those of: a, b\."):
        chosen_model(saved("none"), "run", "c")
    with pytest.raises(UserError, match=r"--site a was given, .* only the shared one; leave it out"):
        chosen_model(saved("both"), "run", "a")
    many = saved("none", tuple(f"a{number:02}" for number in range(30)))
    with pytest.raises(UserError, match=r"a22, a23 and 6 more"):
        chosen_model(many, "run")
