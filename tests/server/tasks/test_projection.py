"""The sums of a closed form over sites: one that lies within what is possible, and what a run remembers of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common.clustering.spectral import PatchScatter
from common.losses.base import ClosedForm, NamedArrays, closed_form
from common.settings.load import load_config
from server.tasks.projection import middle_sums, remembered_sums

CHANNELS, DIM, PATCHES = 24, 4, 400
SETTINGS: dict[str, Any] = {"model.dim": DIM, "model.clusters": 4, "model.nonlinear": False}


def form(objective: str) -> ClosedForm:
    found = closed_form(load_config(SETTINGS | {"loss.objective": objective}))
    assert found is not None
    return found


def site(closed: ClosedForm, seed: int, directions: int, size: float = 1.0) -> dict[str, np.ndarray]:
    """Return what a site sends whose patches vary along a few ``directions`` (a seed of them) beside some noise."""
    rng = np.random.default_rng(seed)
    axes = np.random.default_rng(100 + directions).standard_normal((DIM, CHANNELS))
    patches = size * (
        rng.standard_normal((PATCHES, DIM)) @ axes + 0.5 * rng.standard_normal((PATCHES, CHANNELS))
    )
    near = 0.5 * rng.standard_normal((PATCHES, CHANNELS)) * size
    moments = PatchScatter(
        float(PATCHES), patches.sum(axis=0), patches.T @ patches, float(PATCHES), near.T @ near
    )
    return {key: np.asarray(value) for key, value in closed.unpack(_packed(closed, moments)).items()}


def _packed(closed: ClosedForm, moments: PatchScatter) -> dict[str, np.ndarray]:
    arrays = moments.to_arrays(np.float64)
    if closed.kind == "moments":
        del arrays["difference"]
    return closed.pack(arrays)


def honest_share(closed: ClosedForm, parts: list[NamedArrays]) -> float:
    """Return which part of the variance of the codes is that of honest directions, of 1."""
    head, _ = closed.merge(parts)
    weight = head["linear.weight"].astype(np.float64)
    honest, wrong = (np.random.default_rng(100 + kind).standard_normal((DIM, CHANNELS)) for kind in (1, 2))
    seen, lied = (float(np.square(axes @ weight.T).sum()) for axes in (honest, wrong))
    return seen / (seen + lied)


@pytest.mark.parametrize("objective", ["spectral", "principal"])
def test_a_vote_each_stands_a_site_that_lies_within_what_is_possible(objective: str) -> None:
    closed = form(objective)
    honest = [site(closed, seed, 1) for seed in range(6)]
    attacked = [*honest, site(closed, 9, 2, size=3.5)]
    clean = honest_share(closed, honest)
    assert honest_share(closed, attacked) < clean - 0.2  # a plain sum goes with who has most
    assert honest_share(closed, [middle_sums(attacked, closed)]) > clean - 0.1
    assert honest_share(closed, [middle_sums(honest, closed)]) > clean - 0.05


@pytest.mark.parametrize("objective", ["spectral", "principal"])
def test_what_is_remembered_adds_up(objective: str) -> None:
    config = load_config(SETTINGS | {"loss.objective": objective})
    closed = form(objective)
    parts = {f"site-{seed}": site(closed, seed, 1) for seed in range(3)}
    found = remembered_sums(parts, config)
    assert found["projection-sites"].tobytes().decode() == "site-0\nsite-1\nsite-2"
    total = {key.removeprefix("projection/"): v.astype(np.float64) for key, v in found.items() if "/" in key}
    expected, _ = closed.merge(list(parts.values()))
    again, _ = closed.merge([closed.unpack(total)])
    scale = np.abs(expected["linear.weight"]).max()
    np.testing.assert_allclose(again["linear.weight"], expected["linear.weight"], atol=1e-4 * scale)
    robust = load_config(SETTINGS | {"loss.objective": objective, "centroids.merge": "matched-geometric"})
    assert remembered_sums(parts, robust) == {}
