"""Are colours where the standards put them, and do they come back?"""

from __future__ import annotations

import numpy as np
import pytest

from common.styles.cielab import from_lab, to_lab


def scalar_lab(red: int, green: int, blue: int) -> tuple[float, float, float]:
    """IEC 61966-2-1 and CIE 15 for one colour, term by term."""
    linear = []
    for code in (red, green, blue):
        value = code / 255
        linear.append(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    r, g, b = linear
    x = (0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047
    y = 0.2126729 * r + 0.7151522 * g + 0.0721750 * b
    z = (0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883
    roots = []
    for value in (x, y, z):
        roots.append(value ** (1 / 3) if value > 216 / 24389 else (24389 / 27 * value + 16) / 116)
    return 116 * roots[1] - 16, 500 * (roots[0] - roots[1]), 200 * (roots[1] - roots[2])


@pytest.mark.parametrize(
    ("colour", "lab"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((255, 255, 255), (100, 0, 0)),
        ((119, 119, 119), (50.03, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_known_colours(colour: tuple[int, int, int], lab: tuple[float, float, float]) -> None:
    found = to_lab(np.array([[colour]], dtype=np.uint8))
    assert found.shape == (3, 1, 1)
    assert found.ravel() == pytest.approx(lab, abs=0.015)


def test_every_colour_follows_the_formula() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    image[0] = np.arange(7)[:, None]  # the straight piece near black
    lab = to_lab(image)
    for y in range(6):
        for x in range(7):
            assert lab[:, y, x] == pytest.approx(scalar_lab(*map(int, image[y, x])), abs=2e-3)


def test_grey_has_no_hue() -> None:
    greys = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    assert np.abs(to_lab(greys)[1:]).max() < 1e-3


def test_eight_bit_colours_come_back_exactly() -> None:
    axis = np.array([*range(0, 24), *range(24, 256, 11)], dtype=np.uint8)
    cube = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(len(axis), -1, 3)
    assert np.array_equal(from_lab(to_lab(cube)), cube)


def test_colours_outside_srgb_are_clipped() -> None:
    planes = np.array([[150.0, -20.0, 50.0], [0, 0, 128], [0, 0, -128]], dtype=np.float32)
    painted = from_lab(planes.reshape(3, 1, 3))
    assert painted[0, 0].tolist() == [255, 255, 255]
    assert painted[0, 1].tolist() == [0, 0, 0]
    assert painted[0, 2, 2] == 255
    assert painted[0, 2, 1] == 0
