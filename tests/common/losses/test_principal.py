"""Principal objective: axes against scikit-learn, sums over sites, starts, and what travels."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from common.features.source import Features
from common.losses.principal import Principal, drawn_starts
from common.settings.load import load_config

GRID = (3, 4)


def tokens(images: int, seed: int = 0, channels: int = 8) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((channels, channels))
    made = generator.standard_normal((images, 12, channels)) @ mixing + generator.standard_normal(channels)
    return made.astype(np.float32)


def objective(**given: object) -> Principal:
    settings = {"loss.objective": "principal", "model.dim": 5, "model.clusters": 3} | given
    return Principal(load_config(settings))


def test_codes_are_those_of_scikit_learn_up_to_sign() -> None:
    data = tokens(6)
    rows = data.reshape(-1, 8).astype(np.float64)
    head, _ = objective().merge([objective().site(Features.from_arrays(data, GRID))])
    found = rows @ head["linear.weight"].T + head["linear.bias"]
    expected = PCA(5).fit_transform(StandardScaler().fit_transform(rows))
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-5)


def test_sites_add_up_to_the_pool() -> None:
    data = tokens(7)
    pooled = objective().merge([objective().site(Features.from_arrays(data, GRID))])
    parts = [objective().site(Features.from_arrays(part, GRID)) for part in np.split(data, [1, 4])]
    for parts_sent in (parts, [Principal.unpack(Principal.pack(part)) for part in parts]):
        head, starts = objective().merge(parts_sent)
        np.testing.assert_allclose(head["linear.weight"], pooled[0]["linear.weight"], atol=1e-6)
        np.testing.assert_allclose(starts, pooled[1], atol=1e-6)


def test_what_travels_has_the_shapes_that_are_checked() -> None:
    sent = objective().site(Features.from_arrays(tokens(2), GRID))
    assert {name: value.shape for name, value in sent.items()} == {
        name: tuple(shape) for name, shape in Principal.shapes(8).items()
    }
    packed = Principal.pack(sent)
    assert {name: value.shape for name, value in packed.items()} == Principal.packed_shapes(
        Principal.shapes(8)
    )
    limits = Principal.largest(24, float(np.abs(tokens(2)).max()) * 8**0.5)
    assert all(np.abs(packed[name]).max() <= limit for name, limit in limits.items())


def test_starts_follow_the_seed_and_the_spread_of_codes() -> None:
    config = load_config(
        {"model.clusters": 4, "centroids.over": 500, "centroids.starts": 2, "loss.objective": "principal"}
    )
    starts = drawn_starts(np.array([3.0, 1.0, 0.0]), config)
    assert starts.shape == (2, 500, 3)
    np.testing.assert_allclose(np.linalg.norm(starts, axis=2), 1, rtol=1e-6)
    assert (starts[0] != starts[1]).any()
    assert np.array_equal(starts, drawn_starts(np.array([3.0, 1.0, 0.0]), config))
    assert (starts[..., 2] == 0).all()
    assert (starts[..., 0] ** 2).mean() > 3 * (starts[..., 1] ** 2).mean() / 2


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"model.nonlinear": True}, "model.nonlinear"),
        ({"centroids.over": 2}, "centroids.over"),
        ({"centroids.share": "none"}, "centroids.share"),
        ({"privacy.noise-multiplier": 1.0}, "privacy.noise-multiplier"),
    ],
)
def test_settings_that_do_not_go_with_it_are_named(given: dict[str, object], key: str) -> None:
    conflict = Principal.conflict(objective(**given).config)
    assert conflict is not None
    assert key in conflict
