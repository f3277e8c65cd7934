"""Is what one image or one site adds to a sum really bounded, and is the noise what was asked for?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from client.privacy.private_sums import (
    add_noise,
    bounded_cluster_sums,
    bounded_sums,
    clipped_change,
    noise_key,
    noise_share,
    snapped,
    without_small,
    without_small_cells,
)
from client.statistics import cluster_sums
from common.clustering.spectral import patch_scatter, symmetric
from common.losses.spectral import RELEASE_SCALES, Spectral
from common.models.head import build_head, state_to_numpy
from common.privacy.packed_sums import PackedSums
from common.privacy.secure_masks import normals
from common.settings.load import load_config
from common.settings.schema import RunConfig

CHANNELS, GRID, DIM, CLUSTERS = 6, (3, 4), 3, 4


class Images:
    """Features and colours in memory; a scene per image, so that images differ in their clusters."""

    channels, grid, device = CHANNELS, GRID, torch.device("cpu")

    def __init__(self, count: int, seed: int = 0, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        offsets = torch.randn(count, CHANNELS, 1, 1, generator=generator)
        self.features = scale * (offsets + 0.3 * torch.randn(count, CHANNELS, *GRID, generator=generator))
        self._colours = torch.rand(count, GRID[0] * GRID[1], 3, generator=generator)

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, indices: list[int]) -> torch.Tensor:
        return self.features[indices]

    def colours(self, indices: list[int]) -> torch.Tensor:
        return self._colours[indices]

    def neighbours(self, k: int, dropout: float = 0.0, seed: int = 0) -> np.ndarray:
        raise NotImplementedError


def config_of(unit: str = "image", **privacy: Any) -> RunConfig:
    base = {
        "model.dim": DIM,
        "model.clusters": CLUSTERS,
        "privacy.unit": unit,
        "privacy.noise-multiplier": 1.0,
        "privacy.clip-sums": 9.0,
        "privacy.clip-scatter": 9.0,
        "privacy.feature-norm": 1e3,
    }
    return load_config(base | {f"privacy.{key.replace('_', '-')}": value for key, value in privacy.items()})


def model(config: RunConfig) -> tuple[dict[str, np.ndarray], np.ndarray]:
    centroids = np.random.default_rng(1).normal(size=(CLUSTERS, DIM)).astype(np.float32)
    return state_to_numpy(build_head(CHANNELS, config.model, 0)), centroids


def flat(parts: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(parts[key]) for key in sorted(parts)])


def scatter_of(features: Any, config: RunConfig) -> PackedSums:
    return bounded_sums(Spectral(config), features, config)


def test_without_a_bound_that_bites_the_sums_are_the_exact_ones() -> None:
    config, images = config_of(), Images(7)
    found = bounded_cluster_sums(images, *model(config), config)
    exact = cluster_sums(images, *model(config), config)  # type: ignore[arg-type]
    patches = GRID[0] * GRID[1]
    assert np.allclose(patches * found["sums/sums"], exact.sums)
    assert np.allclose(patches * found["sums/counts"], exact.counts)


def test_without_a_bound_that_bites_the_scatter_is_the_exact_one() -> None:
    radius, images = 1e3, Images(5)
    sent = scatter_of(images, config_of(feature_norm=radius))
    found = {f"scatter/{name}": sent[f"scatter/{name}"] / factor for name, factor in RELEASE_SCALES.items()}
    exact = patch_scatter(images, 0.1)
    patches = GRID[0] * GRID[1]
    assert np.allclose(found["scatter/total"] * radius * patches, exact.total)
    assert np.allclose(symmetric(found["scatter/outer"], CHANNELS) * radius**2 * patches, exact.outer)
    assert found["scatter/weight"][0] / 5 == pytest.approx(
        exact.weight / 5 / 17
    )  # 17 pairs on a grid of 3 x 4
    ratio = symmetric(found["scatter/difference"], CHANNELS) * radius**2 / found["scatter/weight"]
    assert np.allclose(ratio, exact.difference / exact.weight)


@pytest.mark.parametrize("unit", ["image", "site"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_an_image_or_a_site_changes_a_sum_by_the_bound_at_most(unit: str, scale: float) -> None:
    bound, images = 0.2, Images(6, scale=scale)
    config = config_of(unit, clip_sums=bound, clip_scatter=bound, feature_norm=2.0)
    fewer = Images(6, scale=scale)
    fewer.features, fewer._colours = fewer.features[1:], fewer._colours[1:]
    for whole, rest in (
        (flat(scatter_of(images, config)), flat(scatter_of(fewer, config))),
        (
            flat(bounded_cluster_sums(images, *model(config), config)),
            flat(bounded_cluster_sums(fewer, *model(config), config)),
        ),
    ):
        if unit == "image":
            assert 0 < np.linalg.norm(whole - rest) <= bound + 1e-12
        else:  # blanking the whole site takes away all of it
            assert 0 < np.linalg.norm(whole) <= bound + 1e-12


def test_a_heads_change_is_shortened_as_one_vector_and_keeps_its_direction() -> None:
    old = {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}
    new = {"a": old["a"] + 3, "b": old["b"] - 4}
    found = clipped_change(new, old, 1.0)
    change = np.concatenate([(found[k] - old[k]).ravel() for k in ("a", "b")])
    wanted = np.concatenate([(new[k] - old[k]).ravel() for k in ("a", "b")])
    assert np.linalg.norm(change) == pytest.approx(1.0, rel=1e-6)
    assert np.allclose(change / np.linalg.norm(change), wanted / np.linalg.norm(wanted))
    assert found["a"].dtype == np.float32
    for bound in (0.0, 100.0):
        assert all(np.allclose(clipped_change(new, old, bound)[k], new[k]) for k in new)


def test_small_clusters_look_empty() -> None:
    arrays = {"sums": np.ones((3, 2)), "counts": np.array([9, 10, 0]), "cosines": np.ones(3)}
    found = without_small(arrays, "sums", 10)
    assert found["counts"].tolist() == [0, 10, 0]
    assert found["sums"].tolist() == [[0, 0], [1, 1], [0, 0]]
    assert found["cosines"].tolist() == [0, 1, 0]
    assert arrays["counts"].tolist() == [9, 10, 0]
    received = np.full((3, 2), 7.0)
    kept = without_small({"centroids": arrays["sums"], "counts": arrays["counts"]}, "centroids", 10, received)
    assert kept["centroids"].tolist() == [[7, 7], [1, 1], [7, 7]]


def test_small_clusters_and_small_cells_of_a_confusion_matrix_look_empty() -> None:
    pixels = np.array([[900, 9], [50, 60], [10, 500]])
    found = without_small_cells(pixels, np.array([10, 9, 11]), 10)
    assert found.tolist() == [[900, 0], [0, 0], [10, 500]]
    assert without_small_cells(pixels, np.array([0, 1, 2]), 0).tolist() == pixels.tolist()


def test_noise_has_the_deviation_of_its_bound_and_is_fresh_for_every_key() -> None:
    config = config_of(noise_multiplier=2.0, clip_sums=0.5, clip_scatter=3.0)
    parts: dict[str, PackedSums] = {
        "sums": {"sums/sums": np.zeros((200, 100))},
        "scatter": {"scatter/outer": np.zeros(20_000)},
    }
    found = add_noise(parts, config, 0.5, bytes(32))
    assert found["sums/sums"].std() == pytest.approx(2.0 * 0.5 * 0.5, rel=0.03)
    assert found["scatter/outer"].std() == pytest.approx(2.0 * 3.0 * 0.5, rel=0.03)
    assert abs(np.corrcoef(found["sums/sums"].ravel(), found["scatter/outer"])[0, 1]) < 0.03
    again = add_noise(parts, config, 0.5, bytes(32))
    other = add_noise(parts, config, 0.5, noise_key())
    assert np.array_equal(found["sums/sums"], again["sums/sums"])
    assert not np.array_equal(found["sums/sums"], other["sums/sums"])
    assert noise_key() != noise_key()


@pytest.mark.parametrize("deviation", [1e-6, 0.37, 1.0, 5e3])
def test_noisy_numbers_lie_on_a_grid_of_a_millionth_of_the_noise(deviation: float) -> None:
    values = np.random.default_rng(0).normal(size=1000) * 1e3 * deviation
    noisy = values + deviation * normals(bytes(32), 1000)
    found = snapped(noisy, deviation)
    steps = found / (2.0 ** np.floor(np.log2(deviation)) * 2.0**-20)
    # no digit is left that could tell of the number below the noise
    assert np.array_equal(steps, np.rint(steps))
    assert np.abs(found - noisy).max() <= deviation * 2.0**-21
    assert np.array_equal(snapped(values, 0.0), values)


def test_sites_share_the_noise_only_where_nobody_sees_their_parts() -> None:
    assert noise_share(config_of(), 6) == 1.0
    assert noise_share(config_of(secure_sum=True), 9) == pytest.approx(1 / 3)
