"""Is the spectral projection what its formula says, and does splitting the images over sites change nothing?"""

from __future__ import annotations

import functools
import itertools
import math
import operator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import eigh

from common.clustering.spectral import (
    PatchScatter,
    pair_weights,
    pairs,
    patch_scatter,
    separating_projection,
)
from common.features.source import Features

GRID = (3, 4)
TOLERANCE = 0.3


def source(images: int, channels: int = 5, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(images, GRID[0] * GRID[1], channels)).astype(np.float32)
    tokens[:, :, 0] += 3.0
    tokens[:, :, 1] *= 7.0
    colours = rng.uniform(size=(images, GRID[0] * GRID[1], 3))
    return Features.from_arrays(tokens, GRID, colours=colours)


def slow_scatter(features: Features) -> tuple[np.ndarray, np.ndarray]:
    """Covariance and noise by loops over images, patches and pairs, straight from the formula."""
    channels = features.channels
    vectors = []
    noise, weight_sum = np.zeros((channels, channels)), 0.0
    for image in range(len(features)):
        x = features.tokens[image].astype(np.float64)
        c = features.colours([image])[0].double().numpy()
        vectors += list(x)
        found = []
        for row in range(GRID[0]):
            for column in range(GRID[1]):
                here = row * GRID[1] + column
                if column + 1 < GRID[1]:
                    found.append((here, here + 1))
                if row + 1 < GRID[0]:
                    found.append((here, here + GRID[1]))
        distances = [sum((c[i] - c[j]) ** 2) for i, j in found]
        median = sorted(distances)[(len(distances) - 1) // 2]  # torch's median: the lower of two
        for (i, j), distance in zip(found, distances, strict=True):
            w = math.exp(-distance / (TOLERANCE * (median + 1e-8)))
            d = x[i] - x[j]
            noise += w * np.outer(d, d)
            weight_sum += w
    stacked = np.array(vectors)
    centred = stacked - stacked.mean(axis=0)
    return centred.T @ centred / len(stacked), noise / weight_sum


def test_the_sums_are_those_of_the_formula() -> None:
    features = source(4)
    covariance, noise = slow_scatter(features)
    found = patch_scatter(features, TOLERANCE, batch=3)
    mean = found.total / found.count
    assert np.allclose(found.outer / found.count - np.outer(mean, mean), covariance, atol=1e-6)
    assert np.allclose(found.difference / found.weight, noise, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 6), max_size=3, unique=True))
def test_any_split_over_sites_adds_up_to_the_whole(cuts: list[int]) -> None:
    whole = source(7)
    colours = whole.colours(list(range(7))).numpy()
    edges = [0, *sorted(cuts), 7]
    parts = [
        patch_scatter(Features.from_arrays(whole.tokens[a:b], GRID, colours=colours[a:b]), TOLERANCE)
        for a, b in itertools.pairwise(edges)
    ]
    expected = separating_projection(patch_scatter(whole, TOLERANCE), 3)
    for one, other in zip(
        separating_projection(functools.reduce(operator.add, parts), 3), expected, strict=True
    ):
        assert np.allclose(one, other, atol=1e-8)


def test_directions_solve_the_generalised_eigenproblem() -> None:
    scatter = patch_scatter(source(6), TOLERANCE)
    weight, bias, values = separating_projection(scatter, 5, ridge=0.02)
    mean = scatter.total / scatter.count
    covariance = scatter.outer / scatter.count - np.outer(mean, mean)
    scale = np.sqrt(np.diag(covariance))
    noise = scatter.difference / scatter.weight / np.outer(scale, scale)
    noise = noise * 5 / np.trace(noise) + 0.02 * np.eye(5)
    signal = covariance / np.outer(scale, scale)
    expected, vectors = eigh(signal, noise)  # an independent solver
    assert np.allclose(values, expected[::-1])
    for row, vector in zip(weight * scale, vectors[:, ::-1].T, strict=True):
        assert abs(row @ vector) / np.linalg.norm(row) / np.linalg.norm(vector) == pytest.approx(1.0)
    assert np.allclose(bias, -weight @ mean)


def test_codes_do_not_depend_on_the_units_of_a_channel() -> None:
    """Rescaling and shifting channels, as another normalisation of the backbone would, changes no code."""
    features = source(5)
    stretched = features.tokens * np.array([1, 100, 0.01, 5, 2], np.float32) + np.float32(9)
    colours = features.colours(list(range(5))).numpy()
    other = Features.from_arrays(stretched.astype(np.float32), GRID, colours=colours)
    codes = []
    for one in (features, other):
        weight, bias, _ = separating_projection(patch_scatter(one, TOLERANCE), 3)
        codes.append(one.tokens.astype(np.float64) @ weight.T + bias)
    assert np.allclose(codes[0], codes[1], atol=1e-3)


def test_whitening_gives_all_directions_the_same_spread() -> None:
    features = source(8)
    weight, bias, _ = separating_projection(patch_scatter(features, TOLERANCE), 4, whiten=1.0, ridge=1e-6)
    codes = (features.tokens.astype(np.float64) @ weight.T + bias).reshape(-1, 4)
    assert np.allclose(np.cov(codes.T, bias=True), np.eye(4), atol=1e-3)


def test_it_finds_the_channel_that_is_constant_within_regions() -> None:
    """Two halves of one colour each; channel 2 tells them apart, the others are noise of larger variance."""
    rng = np.random.default_rng(1)
    half = np.tile(np.arange(GRID[1]) < 2, GRID[0])
    tokens = rng.normal(size=(40, 12, 4)) * 10
    tokens[:, :, 2] = np.where(half, 1.0, -1.0) + rng.normal(size=(40, 12)) * 0.1
    colours = np.repeat(half[None, :, None], 3, axis=2).repeat(40, axis=0) * 0.5
    colours = colours + rng.uniform(size=colours.shape) * 0.01
    features = Features.from_arrays(tokens.astype(np.float32), GRID, colours=colours)
    weight, _, _ = separating_projection(patch_scatter(features, TOLERANCE), 1)
    assert np.abs(weight[0] * tokens.std(axis=(0, 1))).argmax() == 2


def test_what_travels_is_small_and_comes_back() -> None:
    scatter = patch_scatter(source(4), TOLERANCE)
    arrays = scatter.to_arrays()
    assert {name: array.shape for name, array in arrays.items()} == PatchScatter.shapes(5)
    back = PatchScatter.from_arrays(arrays)
    assert np.allclose(back.outer, scatter.outer, rtol=1e-5, atol=1e-3)
    assert np.allclose(back.difference, scatter.difference, rtol=1e-5, atol=1e-3)
    small_vit = sum(4 * int(np.prod(shape)) for shape in PatchScatter.shapes(384).values())
    assert small_vit < 0.82e6


def test_weights_ignore_contrast_and_prefer_like_colours() -> None:
    colours = torch.rand(2, 12, 3, generator=torch.Generator().manual_seed(0))
    weights = pair_weights(colours, GRID, TOLERANCE)
    assert torch.allclose(weights, pair_weights(colours * 0.5, GRID, TOLERANCE), atol=1e-4)
    left, right = pairs(GRID)
    distance = (colours[0, left] - colours[0, right]).square().sum(-1)
    assert weights[0].argmax() == distance.argmin()


def test_bad_input_is_named() -> None:
    scatter = patch_scatter(source(3), TOLERANCE)
    with pytest.raises(ValueError, match=r"lower model\.dim"):
        separating_projection(scatter, 6)
    broken = PatchScatter(
        scatter.count, scatter.total, scatter.outer * np.nan, scatter.weight, scatter.difference
    )
    with pytest.raises(ValueError, match="not finite"):
        separating_projection(broken, 2)


def test_a_channel_that_never_changes_does_no_harm() -> None:
    features = source(5)
    tokens = np.concatenate([features.tokens, np.ones((5, 12, 1), np.float32)], axis=2)
    colours = features.colours(list(range(5))).numpy()
    weight, bias, _ = separating_projection(
        patch_scatter(Features.from_arrays(tokens, GRID, colours=colours), TOLERANCE), 4
    )
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()
    assert np.allclose(weight[:, 5], 0.0, atol=1e-9)


def test_half_precision_on_the_wire_hardly_turns_the_projection() -> None:
    """Large means and channels of very different size: neither overflow nor cancellation."""
    features = source(30)
    tokens = features.tokens * np.array([1, 300, 0.01, 5, 2], np.float32) + np.float32(900)
    large = Features.from_arrays(tokens, GRID, colours=features.colours(list(range(30))).numpy())
    scatter = patch_scatter(large, TOLERANCE)
    halved = {
        name: array if name == "weights" else array.astype(np.float16).astype(np.float32)
        for name, array in scatter.to_arrays().items()
    }
    assert all(np.isfinite(array).all() for array in halved.values())
    exact, _, _ = separating_projection(scatter, 2)
    rounded, _, _ = separating_projection(PatchScatter.from_arrays(halved), 2)
    for one, other in zip(exact, rounded, strict=True):
        assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.99
