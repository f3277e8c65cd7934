"""Codes inside an image: the walk against its dense matrix, edges, and a finer grid of the same image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.models.codes import codes_within, neighbor_weights, otsu, picture_codes, smooth_codes
from common.settings.load import load_config

GRID = (4, 5)


def image(seed: int = 0, grid: tuple[int, int] = GRID) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(1, 3, *grid, generator=generator, dtype=torch.float64)
    return codes, torch.rand(1, grid[0] * grid[1], 3, generator=generator, dtype=torch.float64)


def dense_walk(codes: torch.Tensor, colors: torch.Tensor, reach: float, steps: int) -> np.ndarray:
    """Return the walk by its matrix, written out pair by pair."""
    height, width = codes.shape[-2:]
    c = colors[0].numpy()
    neighbors = [
        (a, b)
        for a in range(height * width)
        for b in (a + 1, a + width)
        if (b == a + 1 and b % width) or (b == a + width and b < height * width)
    ]
    squares = {pair: float(((c[pair[0]] - c[pair[1]]) ** 2).sum()) for pair in neighbors}
    median = sorted(squares.values())[(len(squares) - 1) // 2]  # torch's median is the lower one
    matrix = np.eye(height * width)
    for (a, b), square in squares.items():
        matrix[a, b] = matrix[b, a] = np.exp(-square / (median + 1e-8))
    matrix /= matrix.sum(axis=1, keepdims=True)
    share = reach**2 / (1 + reach**2)
    z = codes[0].flatten(1).T.numpy()
    x = z
    for _ in range(steps):
        x = (1 - share) * z + share * matrix @ x
    return np.asarray(x.T.reshape(3, height, width))


def test_smoothing_is_the_walk_with_restart() -> None:
    codes, colors = image()
    for reach, steps in ((1.0, 2), (3.0, 14)):
        expected = dense_walk(codes, colors, reach, steps)
        np.testing.assert_allclose(smooth_codes(codes, colors, reach)[0].numpy(), expected, atol=1e-12)


def test_codes_of_one_color_agree_and_an_edge_stays() -> None:
    colors = torch.zeros(1, 20, 3)
    colors.view(4, 5, 3)[:, 3:] = 1.0  # two areas, each of one color
    codes = torch.randn(1, 1, *GRID, generator=torch.Generator().manual_seed(1))
    codes[..., 3:] += 10
    smoothed = smooth_codes(codes, colors, 4.0)[0, 0]
    for area in (slice(0, 3), slice(3, 5)):
        assert smoothed[:, area].std() < 0.5 * codes[0, 0, :, area].std()
    assert smoothed[:, 3:].min() - smoothed[:, :3].max() > 7  # nothing leaks over the edge
    across, _ = neighbor_weights(colors, GRID)
    assert across[0, 0, 0].tolist() == [1.0, 1.0, pytest.approx(0.0), 1.0]


def test_a_finer_grid_is_smoothed_as_far() -> None:
    """A column of 1 in codes of 0 spreads to about the same width in the image, at one cell a patch and at two."""
    widths = []
    for finer in (1, 2):
        grid = (9 * finer, 33 * finer)
        codes = torch.zeros(1, 1, *grid)
        codes[..., 16 * finer : 17 * finer] = 1.0
        found = smooth_codes(codes, torch.full((1, grid[0] * grid[1], 3), 0.5), 3.0 * finer)[0, 0, 4 * finer]
        place = (torch.arange(len(found)) + 0.5) / finer
        center = (found * place).sum() / found.sum()
        widths.append(float(((found * (place - center) ** 2).sum() / found.sum()).sqrt()))
    assert widths[0] == pytest.approx(widths[1], rel=0.15)


def test_settings_say_what_happens_to_codes() -> None:
    codes, colors = image()
    off = load_config({})
    assert codes_within(codes, None, off, False) is codes
    centered = codes_within(codes, None, off, True)
    assert centered.mean(dim=(2, 3)).abs().max() < 1e-12
    for given, expected in (("none", (False,)), ("image", (True,)), ("auto", (False, True))):
        assert load_config({"codes.center": given}).centerings == expected
        assert load_config({"codes.center": given, "things.each-picture": "one"}).centerings == (False,)
    smooth = load_config({"codes.reach": 40.0, "model.height": 80})  # 4 patches in 80 pixels: reach 2
    torch.testing.assert_close(codes_within(codes, colors, smooth, False), smooth_codes(codes, colors, 2.0))
    with pytest.raises(ValueError, match="colors"):
        codes_within(codes, None, smooth, False)


def test_the_threshold_is_otsus() -> None:
    """Every place to part sorted values is tried; the best one is found, also where values come twice."""
    generator = np.random.default_rng(3)
    rows = np.concatenate([generator.normal(0, 1, (4, 30)), generator.normal(6, 1, (4, 9))], axis=1)
    rows[1, :5] = rows[1, 0]
    found = otsu(torch.from_numpy(rows)).numpy()
    for values, threshold in zip(rows, found, strict=True):
        best = max(
            (low.size * high.size * (low.mean() - high.mean()) ** 2, cut)
            for cut in np.unique(values)[:-1]
            for low, high in [(values[values <= cut], values[values > cut])]
        )
        assert best[1] <= threshold < values[values > best[1]].min()
    assert otsu(torch.full((1, 5), 2.0)).item() == 2.0


def test_what_stands_out_is_found_and_named_by_its_mean_direction() -> None:
    codes = torch.zeros(1, 3, 4, 5)
    codes[:, 0] = 1.0
    codes[0, :, 1, 1:3] = torch.tensor([0.0, 2.0, 0.0])[:, None]  # length means nothing
    margins, picture = picture_codes(codes)
    expected = torch.zeros(1, 4, 5, dtype=torch.bool)
    expected[0, 1, 1:3] = True
    assert torch.equal(margins > 0, expected)
    torch.testing.assert_close(picture, torch.tensor([[0.0, 1.0, 0.0]]))
