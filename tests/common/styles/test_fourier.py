"""Do two small matrix products give the window that a full transform gives?"""

from __future__ import annotations

import numpy as np
import pytest

from common.styles.style import half_window, synthesise, upper_half, whole_window

SIZES = [(8, 12), (9, 12), (8, 13), (11, 15)]


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def full_window(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The window as published: transform everything, move the mean to the middle, cut. [3, rows, columns]"""
    spectrum = np.fft.fft2(image.astype(np.float64), axes=(0, 1))
    shifted = np.fft.fftshift(spectrum, axes=(0, 1)).transpose(2, 0, 1)
    top, left = image.shape[0] // 2, image.shape[1] // 2
    return shifted[:, top - rows : top + rows + 1, left - columns : left + columns + 1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("half", [(0, 0), (1, 1), (2, 3), (3, 0), (0, 5), (3, 5)])
def test_a_half_window_is_the_upper_part_of_the_centred_spectrum(
    size: tuple[int, int], half: tuple[int, int]
) -> None:
    image = picture(size)
    expected = full_window(image, *half)
    found = half_window(image, half)
    assert found.shape == (half[0] + 1, 3, 2 * half[1] + 1)
    assert np.abs(found.transpose(1, 0, 2) - expected[:, half[0] :]).max() < 2e-2  # of a sum of about 2e4
    assert np.abs(whole_window(np.abs(found)) - np.abs(expected)).max() < 2e-2


def test_a_single_wave_has_one_frequency() -> None:
    rows, columns = np.arange(16)[:, None, None], np.arange(20)[None, :, None]
    wave = 3 + np.cos(2 * np.pi * (2 * rows / 16 - 1 * columns / 20))
    window = half_window(np.broadcast_to(wave, (16, 20, 3)).astype(np.float32), (2, 2))
    expected = np.zeros((3, 3, 5))
    expected[0, :, 2] = 3 * 16 * 20
    expected[2, :, 1] = 16 * 20 / 2
    assert np.abs(window - expected).max() < 1e-3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("half", [(0, 0), (1, 1), (3, 5)])
def test_synthesis_is_the_inverse_transform_of_the_window_alone(
    size: tuple[int, int], half: tuple[int, int]
) -> None:
    image = picture(size, seed=1)
    spectrum = np.fft.fftshift(np.fft.fft2(image.astype(np.float64), axes=(0, 1)), axes=(0, 1))
    mask = np.zeros(size, dtype=bool)
    top, left = size[0] // 2, size[1] // 2
    mask[top - half[0] : top + half[0] + 1, left - half[1] : left + half[1] + 1] = True
    kept = np.fft.ifftshift(spectrum * mask[..., None], axes=(0, 1))
    inverse = np.fft.ifft2(kept, axes=(0, 1))
    assert np.abs(inverse.imag).max() < 1e-9  # the window has a mirror image of each of its members
    assert np.abs(synthesise(half_window(image, half), size) - inverse.real).max() < 1e-3


def test_a_window_is_unfolded_and_folded_again() -> None:
    half = np.random.default_rng(2).random((3, 3, 5))
    half[0] = (half[0] + half[0][:, ::-1]) / 2  # amplitudes of a real picture
    whole = whole_window(half)
    assert whole.shape == (3, 5, 5)
    assert np.array_equal(whole, whole[:, ::-1, ::-1])
    assert np.array_equal(upper_half(whole), half)


def test_large_pictures_keep_six_digits() -> None:
    image = picture((512, 1024), seed=3)
    expected = np.abs(full_window(image, 1, 1))
    found = whole_window(np.abs(half_window(image, (1, 1))))
    assert np.abs(found - expected).max() < 1e-7 * expected.max()


@pytest.mark.parametrize("half", [(4, 0), (0, 6)])
def test_the_nyquist_frequency_stays_out(half: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="does not fit an image of 8 x 12 pixels"):
        half_window(picture((8, 12)), half)
