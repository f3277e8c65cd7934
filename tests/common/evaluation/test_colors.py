"""Colors inside an image: Gaussians by hand, things smaller than a patch, and their weight among many clusters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.evaluation.colors import (
    color_monomials,
    color_refinement,
    log_densities,
    refine_by_colors,
    responsibilities,
    window_mean,
)
from common.settings.label_free import Refine
from common.settings.load import load_config

ON = Refine(colors=1.0)


def test_densities_are_those_of_weighted_gaussians() -> None:
    generator = np.random.default_rng(0)
    colors, weights = generator.random((50, 3)), generator.random((2, 50))
    found = log_densities(torch.from_numpy(weights), color_monomials(torch.from_numpy(colors))).numpy()
    for row, weight in zip(found, weights, strict=True):
        mean = np.average(colors, axis=0, weights=weight)
        covariance = np.cov(colors.T, aweights=weight, ddof=0) + (2e-3 + 1e-6) * np.eye(3)
        away = colors - mean
        expected = -0.5 * np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
        np.testing.assert_allclose(row, expected - 0.5 * np.linalg.slogdet(covariance)[1], rtol=1e-9)


def test_window_mean_repeats_the_rim() -> None:
    maps = torch.arange(5.0).view(1, 1, 5).expand(1, 3, 5).contiguous()
    torch.testing.assert_close(window_mean(maps, 1)[0, 1], torch.tensor([1 / 3, 1.0, 2.0, 3.0, 11 / 3]))


def spots(size: int = 48, radius: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return a dark image with bright spots smaller than a patch of 16 pixels, and which pixels are spots."""
    rows, columns = np.mgrid[:size, :size]
    truth = np.zeros((size, size), dtype=bool)
    for row, column in ((8, 8), (8, 30), (30, 12), (38, 38)):
        truth |= (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    noise = np.random.default_rng(0).normal(0, 8, (size, size, 3))
    image = np.where(truth[..., None], 200, 40) + noise
    return image.clip(0, 255).astype(np.uint8), truth


def coarse_map(truth: np.ndarray, height: float = 0.3) -> torch.Tensor:
    """Return cosines of two clusters as patches of 16 pixels would give them: spots weigh by their share."""
    share = torch.from_numpy(truth.astype(np.float32))[None, None]
    grid = torch.nn.functional.avg_pool2d(share, 16)
    maps = torch.cat([height - grid, grid], dim=1)
    return torch.nn.functional.interpolate(maps, truth.shape, mode="bilinear")[0]


def test_things_smaller_than_a_patch_appear() -> None:
    image, truth = spots()
    cosines = coarse_map(truth)
    coarse = cosines.argmax(0).numpy() == 1
    refined = refine_by_colors(cosines, image, ON, height=48) == 1
    overlap = (refined & truth).sum() / (refined | truth).sum()
    assert overlap > 0.95
    assert overlap > 3 * (coarse & truth).sum() / max((coarse | truth).sum(), 1)


def test_colors_hardly_speak_among_many_clusters() -> None:
    """Of ten clusters that share an image alike, noise in the colors moves few pixels; of two, it would move many."""
    size, generator = 40, torch.Generator().manual_seed(0)
    colors = torch.rand(size * size, 3, generator=generator)
    moved = {}
    for clusters in (2, 10):
        truth = torch.arange(size).mul(clusters).div(size, rounding_mode="floor").expand(size, size)
        prior = torch.nn.functional.one_hot(truth, clusters).permute(2, 0, 1) * 0.6 + 0.4 / clusters
        moved[clusters] = float((responsibilities(prior, colors, ON, 4).argmax(0) != truth).float().mean())
    assert moved[10] < 0.1
    assert moved[2] > 3 * moved[10]


def test_large_images_keep_their_size_and_settings_switch_it_on() -> None:
    image, truth = spots(size=96, radius=6)
    large = np.repeat(np.repeat(image, 10, axis=0), 10, axis=1)
    cosines = torch.nn.functional.interpolate(coarse_map(truth)[None], large.shape[:2], mode="bilinear")[0]
    found = refine_by_colors(cosines, large, ON, height=96)
    assert found.shape == large.shape[:2]
    wanted = np.repeat(np.repeat(truth, 10, axis=0), 10, axis=1)
    assert ((found == 1) & wanted).sum() / ((found == 1) | wanted).sum() > 0.85
    config = load_config({})
    assert color_refinement(config, config.model) is None
    on = load_config({"refine.colors": 1.0, "model.height": 48})
    refine = color_refinement(on, on.model)
    assert refine is not None
    small, spot = spots()
    np.testing.assert_array_equal(
        refine(coarse_map(spot), small), refine_by_colors(coarse_map(spot), small, ON, 48)
    )


def test_one_color_leaves_the_map() -> None:
    cosines = coarse_map(spots()[1])
    flat = np.full((48, 48, 3), 90, np.uint8)
    found = refine_by_colors(cosines, flat, ON.model_copy(update={"prior": 1.0}), height=48)
    np.testing.assert_array_equal(found, cosines.argmax(0).numpy())
    with pytest.raises(ValueError, match="colors"):
        load_config({"refine.colors": -1.0})


def test_shared_covariance_and_the_ridge_of_low_contrast() -> None:
    generator = np.random.default_rng(1)
    colors, weights = 0.01 * generator.random((40, 3)), generator.random((2, 40))
    found = log_densities(torch.from_numpy(weights), color_monomials(torch.from_numpy(colors)), 0.5).numpy()
    own = [np.cov(colors.T, aweights=weight, ddof=0) for weight in weights]
    pooled = np.average(own, axis=0, weights=weights.sum(axis=1))
    joint = weights.sum(axis=0)
    spread = np.average(
        (colors - np.average(colors, axis=0, weights=joint)) ** 2, axis=0, weights=joint
    ).mean()
    for row, weight, covariance in zip(found, weights, own, strict=True):
        wanted = (covariance + pooled) / 2 + (0.3 * spread + 1e-6) * np.eye(3)
        away = colors - np.average(colors, axis=0, weights=weight)
        expected = -0.5 * np.einsum("ni,ij,nj->n", away, np.linalg.inv(wanted), away)
        np.testing.assert_allclose(row, expected - 0.5 * np.linalg.slogdet(wanted)[1], rtol=1e-6)
