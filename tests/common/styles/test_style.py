"""Are styles what the formulas say, and do pictures take them on and keep the rest?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.images import read_image
from common.seeds import torch_generator
from common.settings.network import Style
from common.styles.style import (
    apply_style,
    check_style,
    extract_style,
    half_sizes,
    half_window,
    mean_style,
    style_of,
    style_shape,
)


def settings(transfer: str = "fourier", size: tuple[int, int] = (24, 40), **more: object) -> Style:
    return Style.model_validate({"transfer": transfer, "height": size[0], "width": size[1], **more})


def soft(size: tuple[int, int], seed: int = 0, low: int = 90, high: int = 160) -> np.ndarray:
    """A picture far from 0 and 255, so that nothing is clipped."""
    return np.random.default_rng(seed).integers(low, high, (*size, 3), dtype=np.uint8)


def published(image: np.ndarray, style: np.ndarray, share: float = 1.0) -> np.ndarray:
    """Full transform, amplitudes of the centred window mixed or replaced, phases kept, full inverse."""
    spectrum = np.fft.fft2(image.astype(np.float64).transpose(2, 0, 1))
    amplitude = np.fft.fftshift(np.abs(spectrum), axes=(1, 2))
    rows, columns = style.shape[1] // 2, style.shape[2] // 2
    top, left = image.shape[0] // 2, image.shape[1] // 2
    window = (slice(None), slice(top - rows, top + rows + 1), slice(left - columns, left + columns + 1))
    amplitude[window] = (1 - share) * amplitude[window] + share * style
    mixed = np.fft.ifftshift(amplitude, axes=(1, 2)) * np.exp(1j * np.angle(spectrum))
    back = np.real(np.fft.ifft2(mixed)).transpose(1, 2, 0)
    return np.clip(np.round(back), 0, 255).astype(np.uint8)


def assert_equal_but_for_rounding(found: np.ndarray, expected: np.ndarray) -> None:
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3  # values that lie on .5 but for an error of float32


@pytest.mark.parametrize(
    ("given", "half"),
    [
        ({"side": 1}, (0, 0)),
        ({"side": 7}, (3, 3)),
        ({"side": 0, "half_size": 2}, (2, 2)),
        ({"side": 0, "fraction": 0.1}, (2, 2)),
        ({"transfer": "spectra", "side": 0, "fraction": 0.1}, (2, 4)),
        ({"transfer": "spectra", "side": 3}, (1, 1)),
    ],
)
def test_the_window_follows_from_side_half_size_or_share(
    given: dict[str, object], half: tuple[int, int]
) -> None:
    chosen = settings(**{"transfer": "fourier", **given})  # type: ignore[arg-type]
    assert half_sizes(chosen) == half
    assert style_shape(chosen) == (3, 2 * half[0] + 1, 2 * half[1] + 1)


def test_a_style_is_the_window_of_the_full_transform() -> None:
    image = soft((24, 40), low=0, high=256)
    style = extract_style(image, settings(side=5))
    spectrum = np.fft.fftshift(np.abs(np.fft.fft2(image.transpose(2, 0, 1).astype(float))), axes=(1, 2))
    assert style.dtype == np.float32
    assert np.abs(style - spectrum[:, 10:15, 18:23]).max() < 0.1
    assert style[:, 2, 2] == pytest.approx(image.reshape(-1, 3).sum(axis=0), rel=1e-6)


def test_pictures_of_other_sizes_are_resized_first() -> None:
    image = soft((30, 70), seed=2)
    resized = np.asarray(Image.fromarray(image).resize((40, 24), Image.Resampling.BICUBIC))
    for transfer in ("fourier", "spectra"):
        chosen = settings(transfer)
        assert np.array_equal(extract_style(image, chosen), extract_style(resized, chosen))
    lab = extract_style(image, settings("lab"))  # a resize would take contrast from the picture
    assert (lab[1] > extract_style(resized, settings("lab"))[1]).all()


def test_no_transfer_has_no_style() -> None:
    with pytest.raises(ValueError, match=r"style\.transfer is 'none'"):
        extract_style(soft((24, 40)), settings("none"))


@pytest.mark.parametrize("size", [(24, 40), (25, 40), (24, 41), (25, 41)])
@pytest.mark.parametrize("side", [1, 3, 9, 23])
def test_fourier_is_the_published_transfer_at_the_common_size(size: tuple[int, int], side: int) -> None:
    chosen = settings(size=size, side=side)
    image, style = soft(size, seed=3), extract_style(soft(size, seed=4, low=20, high=90), chosen)
    assert_equal_but_for_rounding(apply_style(image, style, chosen), published(image, style))


@pytest.mark.parametrize("size", [(24, 40), (25, 41)])
@pytest.mark.parametrize("side", [1, 3, 9, 23])
def test_the_own_style_changes_nothing(size: tuple[int, int], side: int) -> None:
    image = soft(size, seed=5, low=0, high=256)
    for transfer in ("fourier", "spectra"):
        chosen = settings(transfer, size, side=side)
        assert np.array_equal(apply_style(image, extract_style(image, chosen), chosen), image)


def test_the_own_lab_style_changes_nothing() -> None:
    image = soft((24, 40), seed=5, low=0, high=256)
    chosen = settings("lab")
    assert np.array_equal(apply_style(image, extract_style(image, chosen), chosen), image)


def test_a_window_of_one_bin_moves_the_mean_colour_and_nothing_else() -> None:
    chosen = settings(side=1)
    image, other = soft((24, 40), seed=6), soft((24, 40), seed=7, low=60, high=110)
    moved = apply_style(image, extract_style(other, chosen), chosen).astype(int) - image
    assert all(len(np.unique(moved[..., channel])) == 1 for channel in range(3))
    wanted = other.reshape(-1, 3).mean(axis=0) - image.reshape(-1, 3).mean(axis=0)
    assert np.abs(moved[0, 0] - wanted).max() <= 0.5


def test_amplitudes_arrive_and_phases_stay() -> None:
    chosen = settings(side=5)
    image, style = soft((24, 40), seed=8), extract_style(soft((24, 40), seed=9), chosen)
    styled = apply_style(image, style, chosen)
    rounding = 4 * np.sqrt(24 * 40 / 12)  # four deviations of the rounding to whole levels
    assert np.abs(extract_style(styled, chosen) - style).max() < rounding
    before, after = half_window(image, (2, 2)), half_window(styled, (2, 2))
    strong = np.minimum(np.abs(before), np.abs(after)) > 10 * rounding
    assert strong.sum() > 10
    assert np.abs(np.angle(after / before))[strong].max() < 0.1


def test_frequencies_outside_of_the_window_stay() -> None:
    chosen = settings(side=3)
    image = soft((24, 40), seed=10)
    styled = apply_style(image, 1.3 * extract_style(image, chosen), chosen)
    change = np.fft.fft2(styled.astype(float) - image, axes=(0, 1))
    inside = np.zeros((24, 40), dtype=bool)
    inside[np.ix_([-1, 0, 1], [-1, 0, 1])] = True
    # what is left is the rounding to whole levels, which follows the smooth change in bands
    assert np.abs(change[~inside]).max() < 5e-3 * np.abs(change[inside]).max()


def test_at_another_size_amplitudes_are_scaled_by_the_number_of_pixels() -> None:
    chosen = settings(side=3)
    style = extract_style(soft((24, 40), seed=11, low=60, high=100), chosen)
    image = soft((33, 50), seed=12)
    expected = published(image, style.astype(float) * (33 * 50) / (24 * 40))
    assert_equal_but_for_rounding(apply_style(image, style, chosen), expected)


def test_a_picture_of_one_colour_gets_no_arbitrary_phase() -> None:
    chosen = settings(side=3)
    style = extract_style(soft((24, 40), seed=13), chosen)
    flat = np.full((24, 40, 3), 120, dtype=np.uint8)
    shifted = apply_style(flat, style, chosen)
    assert np.isfinite(shifted).all()
    assert np.array_equal(shifted, shifted[(-np.arange(24)) % 24][:, (-np.arange(40)) % 40])  # cosines only


def test_results_beyond_eight_bits_are_clipped_not_wrapped() -> None:
    chosen = settings(side=1)
    bright = extract_style(np.full((24, 40, 3), 250, dtype=np.uint8), chosen)
    image = soft((24, 40), seed=14, low=0, high=256)
    styled = apply_style(image, bright, chosen)
    assert (styled >= image).all()
    assert styled.max() == 255


def test_a_picture_smaller_than_the_window_is_refused() -> None:
    chosen = settings(side=9)
    with pytest.raises(ValueError, match="9 x 9 frequencies does not fit an image of 8 x 40"):
        apply_style(soft((8, 40)), extract_style(soft((24, 40)), chosen), chosen)


def test_spectra_mix_at_a_drawn_share() -> None:
    chosen = settings("spectra", side=0, fraction=0.1, mix=0.6)
    image, style = soft((24, 40), seed=15), extract_style(soft((24, 40), seed=16, low=30, high=90), chosen)
    assert style.shape == (3, 5, 9)
    shares = []
    for index in range(40):
        styled = apply_style(image, style, chosen, torch_generator(0, index))
        moved = styled.astype(float).mean() - image.mean()
        shares.append(moved / (style[:, 2, 4].mean() / (24 * 40) - image.mean()))
    assert 0 <= min(shares) < 0.1
    assert 0.5 < max(shares) < 0.61
    assert_equal_but_for_rounding(apply_style(image, style, chosen), published(image, style, 0.6))
    again = [apply_style(image, style, chosen, torch_generator(0, 3)) for _ in range(2)]
    assert np.array_equal(*again)


def test_lab_moves_mean_and_deviation() -> None:
    chosen = settings("lab")
    image, other = soft((24, 40), seed=17), soft((24, 40), seed=18, low=70, high=120)
    style = extract_style(other, chosen)
    assert style.shape == (2, 3)
    styled = apply_style(image, style, chosen)
    assert extract_style(styled, chosen) == pytest.approx(style, abs=0.15)


def test_lab_of_two_greys_by_hand() -> None:
    # L of grey 119 is 50.03 and of grey 255 is 100; deviation of two values is half their distance
    two = np.repeat(np.tile(np.array([119, 255], dtype=np.uint8), (8, 4))[..., None], 3, axis=2)
    style = extract_style(two, settings("lab", (8, 8)))
    assert style == pytest.approx(np.array([[75.017, 0, 0], [24.983, 0, 0]]), abs=3e-3)
    # a flat picture has no contrast to scale: it takes the mean, L = 75.02, which is grey 185 or 186
    flat = apply_style(np.full((8, 8, 3), 40, dtype=np.uint8), style, settings("lab", (8, 8)))
    assert len(np.unique(flat)) == 1
    assert flat[0, 0, 0] in (185, 186)


def test_a_sites_style_is_the_mean_over_its_images() -> None:
    chosen = settings(side=3)
    images = [soft((24, 40), seed=seed) for seed in range(4)]
    each = np.stack([extract_style(image, chosen).astype(np.float64) for image in images])
    assert style_of(iter(images), chosen) == pytest.approx(each.mean(axis=0))


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        mean_style([])


@pytest.mark.parametrize(
    ("style", "words"),
    [
        (np.zeros((3, 5, 5), np.float32), r"shape \[3, 3, 3\]"),
        (np.zeros((3, 3, 3), np.int64), "int64"),
        (np.full((3, 3, 3), np.nan, np.float32), "NaN"),
        (np.full((3, 3, 3), np.inf, np.float32), "infinity"),
        (np.full((3, 3, 3), -1, np.float32), "negative amplitudes"),
    ],
)
def test_a_style_from_elsewhere_is_looked_at(style: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_style(style, settings(side=3))


def test_a_lab_mean_may_be_negative_but_no_deviation() -> None:
    style = np.array([[50, -3, -9], [10, 4, 5]], dtype=np.float64)
    assert check_style(style, settings("lab")).dtype == np.float32
    with pytest.raises(ValueError, match="negative deviations"):
        check_style(-style, settings("lab"))


@pytest.mark.shared
@pytest.mark.parametrize("transfer", ["fourier", "lab"])
def test_day_in_the_style_of_dusk_is_as_dark_as_dusk(shared_data: Path, transfer: str) -> None:
    images = shared_data / "camvid" / "train" / "images"
    dusk = [read_image(images / f"0001TP_{number:06}.jpg") for number in (6690, 7200, 7500)]
    day = read_image(images / "0016E5_01410.jpg")
    chosen = settings(transfer, (512, 1024))
    styled = apply_style(day, style_of(dusk, chosen), chosen)
    dark = np.mean([image.mean() for image in dusk])
    assert abs(styled.mean() - dark) < 0.35 * abs(day.mean() - dark)
    own = extract_style(day, chosen)
    assert np.abs(apply_style(day, own, chosen).astype(int) - day).max() <= 1  # at its own size, 360 x 480
