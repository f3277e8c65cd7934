"""The few lowest frequencies of an image, read and changed without a transform of all of it.

A window of frequencies -b..b is two small matrix products: rows, then columns. The image is real, so that
F(-u, -v) is the conjugate of F(u, v) and rows 0..b hold all there is: a *half window* is complex128
[bh + 1, channels, 2 bw + 1], rows u = 0..bh, columns v = -bw..bw. Transforms are scaled as numpy's are by
default: forward not at all, backward by 1 / (height * width). The sums over rows are float32, relative error
about 1e-7 of the mean; the rest is float64.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from common.data.crops import Bytes

_Floats = npt.NDArray[np.float32]
Complex = npt.NDArray[np.complex128]


@lru_cache(maxsize=64)
def _waves(length: int, half: int) -> _Floats:
    """Return cos(2 pi u y / length) for u = 0..half, then sin for u = 1..half: [2 half + 1, length]."""
    turns = np.outer(np.arange(half + 1), np.arange(length)) % length  # keeps the angles small and exact
    angles = 2 * np.pi * turns / length
    waves = np.concatenate([np.cos(angles), np.sin(angles[1:])]).astype(np.float32)
    waves.flags.writeable = False  # the cache hands the same array to everybody
    return waves


@lru_cache(maxsize=64)
def _columns(length: int, half: int) -> Complex:
    """Return exp(-2 pi i v x / length) for v = -half..half: [length, 2 half + 1]."""
    turns = np.outer(np.arange(length), np.arange(-half, half + 1)) % length
    columns: Complex = np.exp(-2j * np.pi * turns / length)
    columns.flags.writeable = False
    return columns


def half_window(image: Bytes | _Floats, half: tuple[int, int]) -> Complex:
    """Return the lowest frequencies of each channel of ``image`` [H, W, C] as a half window.

    ``half`` is (bh, bw) with 2 bh + 1 <= H and 2 bw + 1 <= W, which keeps the Nyquist frequency out.
    """
    height, width, channels = image.shape
    _check_fits((height, width), half)
    rows = _waves(height, half[0]) @ image.reshape(height, -1).astype(np.float32)
    rows = rows.reshape(-1, width, channels).transpose(0, 2, 1).astype(np.float64)
    folded = rows[: half[0] + 1].astype(np.complex128)
    folded[1:] -= 1j * rows[half[0] + 1 :]
    window: Complex = folded @ _columns(width, half[1])
    return window


def whole_window(window: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return amplitudes of a half window as a centred one: [bh + 1, C, 2 bw + 1] -> [C, 2 bh + 1, 2 bw + 1].

    The order is that of ``fftshift``, cut out around its centre.
    """
    mirrored = window[:0:-1, :, ::-1]  # |F(-u, -v)| = |F(u, v)|
    whole: npt.NDArray[np.float64] = np.concatenate([mirrored, window]).transpose(1, 0, 2)
    return whole


def upper_half(whole: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Undo `whole_window`: [C, 2 bh + 1, 2 bw + 1] -> [bh + 1, C, 2 bw + 1]."""
    rows = whole.shape[1] // 2
    half: npt.NDArray[np.float64] = whole[:, rows:].transpose(1, 0, 2).astype(np.float64)
    return half


def synthesise(window: Complex, size: tuple[int, int]) -> _Floats:
    """Return the image that has these lowest frequencies and no others: float32 [H, W, C].

    The inverse transform of a window, of rank 2 bh + 1 at most: its cost hardly grows with the image.
    """
    height, width = size
    half = window.shape[0] - 1, window.shape[2] // 2
    _check_fits(size, half)
    rows = (window @ _columns(width, half[1]).conj().T).transpose(0, 2, 1)
    rows = rows * (np.where(np.arange(half[0] + 1) > 0, 2.0, 1.0) / (height * width))[:, None, None]
    waves = np.concatenate([rows.real, -rows[1:].imag]).astype(np.float32)
    image: _Floats = (_waves(height, half[0]).T @ waves.reshape(len(waves), -1)).reshape(height, width, -1)
    return image


def _check_fits(size: tuple[int, int], half: tuple[int, int]) -> None:
    if any(2 * bins + 1 > length for bins, length in zip(half, size, strict=True)):
        raise ValueError(
            f"A window of {2 * half[0] + 1} x {2 * half[1] + 1} frequencies does not fit an image of "
            f"{size[0]} x {size[1]} pixels; expected a smaller window or a larger image."
        )
