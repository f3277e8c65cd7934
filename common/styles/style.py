"""Style of an image, and its transfer to another image.

A style is a few numbers, and all that a site says about the look of its images:

* ``fourier``  amplitudes of the lowest frequencies, [3, 2b+1, 2b+1]; an image takes them on and keeps its
  phases (FDA: Yang and Soatto, CVPR 2020);
* ``lab``      mean and standard deviation of each CIELAB channel, [2, 3]; an image's are shifted and scaled to
  them (Reinhard et al., 2001, in CIELAB);
* ``spectra``  amplitudes as above, [3, 2bh+1, 2bw+1]; the image's own are mixed with them at a random share
  (CFSI of FedDG: Liu et al., CVPR 2021), from the window only: nothing else of a spectrum is used, so
  nothing else is kept.

Amplitudes are taken at one common size, ``style.height x style.width``, because they grow with the number of
pixels: those of an unscaled transform, whose middle one is the sum over all pixels. Means and deviations do
not, and are taken of an image as it is: a resize would take contrast from it. Styles are float32, images
uint8 [H, W, 3].

A window of frequencies -b..b is read and changed by two small matrix products, rows, then columns, without a transform
of all of the image. The image is real, so that F(-u, -v) is the conjugate of F(u, v) and rows 0..b hold all there is: a
*half window* is complex128 [bh + 1, channels, 2 bw + 1], rows u = 0..bh, columns v = -bw..bw. Transforms are scaled
as numpy's are by default: forward not at all, backward by 1 / (height * width). The sums over rows are float32,
relative error about 1e-7 of the mean; the rest is float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from common.data.images import Bytes
from common.settings.network import Style
from common.styles.cielab import from_lab, to_lab

if TYPE_CHECKING:
    import torch


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


StyleArray = npt.NDArray[np.float32]

# amplitudes below this share of the mean are rounding errors, whose phase says nothing
_QUIET = 1e-6


def half_sizes(settings: Style) -> tuple[int, int]:
    """Return the window's half-sizes (bh, bw) in bins.

    A window given as a share is a square for ``fourier`` (of the shorter side) and has the image's own
    aspect for ``spectra``, as published; one given in bins is a square for both.
    """
    if settings.transfer == "spectra" and settings.fraction > 0:
        return int(settings.fraction * settings.height), int(settings.fraction * settings.width)
    return settings.half_side, settings.half_side


def style_kind(settings: Style) -> Style:
    """Return the settings by which styles are taken: without a transfer, clusters look at amplitudes."""
    return settings if settings.transfer != "none" else settings.model_copy(update={"transfer": "fourier"})


def style_shape(settings: Style) -> tuple[int, ...]:
    """Return the shape of a style's array; raises ValueError where no transfer is set."""
    if settings.transfer == "none":
        raise ValueError("style.transfer is 'none'; expected 'fourier', 'lab' or 'spectra' to take styles.")
    if settings.transfer == "lab":
        return 2, 3
    rows, columns = half_sizes(settings)
    return 3, 2 * rows + 1, 2 * columns + 1


def check_style(style: npt.NDArray[np.generic], settings: Style) -> StyleArray:
    """Return a style as float32; raises ValueError unless it can be one of these settings.

    Looks at the type, the shape, that all numbers are finite, and that amplitudes and deviations are not
    negative: a style may come from another machine.
    """
    shape = style_shape(settings)
    if style.shape != shape or style.dtype.kind != "f":
        raise ValueError(
            f"A style is {style.dtype} of shape {list(style.shape)}; expected float32 of shape {list(shape)} "
            f"for style.transfer {settings.transfer!r} and this window."
        )
    checked: StyleArray = np.ascontiguousarray(style, dtype=np.float32)
    sizes = checked[1] if settings.transfer == "lab" else checked
    if not np.isfinite(checked).all() or float(sizes.min()) < 0:
        what = "deviations" if settings.transfer == "lab" else "amplitudes"
        raise ValueError(f"A style holds NaN, infinity or negative {what}; take it again from the images.")
    return checked


def extract_style(image: Bytes, settings: Style) -> StyleArray:
    """Return the style of one image of any size (amplitudes: resized, bicubic, to the common size first)."""
    style_shape(settings)  # raises where there is no transfer
    if settings.transfer == "lab":
        return np.stack(_moments(to_lab(image))).astype(np.float32)
    size = settings.height, settings.width
    if image.shape[:2] != size:
        resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        image = np.asarray(resized, dtype=np.uint8)
    amplitudes = np.abs(half_window(image, half_sizes(settings)))
    return whole_window(amplitudes).astype(np.float32)


def mean_style(styles: Iterable[npt.NDArray[np.floating]]) -> StyleArray:
    """Return the mean of styles, summed in float64 in their order; raises ValueError where there is none."""
    total, count = np.zeros(()), 0
    for style in styles:
        total = total + style.astype(np.float64)
        count += 1
    if not count:
        raise ValueError("A mean of no styles was asked for; expected at least one image.")
    return (total / count).astype(np.float32)


def style_of(images: Iterable[Bytes], settings: Style) -> StyleArray:
    """Return a site's style, the mean over its images, which are asked for one at a time."""
    return mean_style(extract_style(image, settings) for image in images)


def apply_style(
    image: Bytes,
    style: npt.NDArray[np.floating],
    settings: Style,
    generator: torch.Generator | None = None,
) -> Bytes:
    """Return the image in another style, at its own size.

    A frequency is a number of waves over the whole image at any size, and an amplitude grows with the
    number of pixels. So amplitudes are scaled by the ratio of pixels, and the image is spared two resizes;
    at the common size this is the published transfer. Only the change is transformed back and added.

    Args:
        image: uint8 [H, W, 3], no smaller than the window.
        style: from `extract_style` or a mean of those, of the same settings.
        settings: kind, window and common size.
        generator: draws the share of ``spectra``, uniform in 0..``style.mix``; None: ``style.mix`` itself.
            The other transfers draw nothing.
    """
    style = check_style(style, settings)
    if settings.transfer == "lab":
        return _apply_lab(image, style)
    share = 1.0
    if settings.transfer == "spectra":
        share = settings.mix * (1.0 if generator is None else draw_uniform(generator))
    scale = image.shape[0] * image.shape[1] / (settings.height * settings.width)
    own = half_window(image, half_sizes(settings))
    wanted = scale * upper_half(style)
    changed = synthesise(_amplitude_change(own, wanted, share), (image.shape[0], image.shape[1]))
    changed += image  # only the change went through the transform: the rest keeps its bits
    styled: Bytes = np.clip(np.rint(changed, out=changed), 0, 255, out=changed).astype(np.uint8)
    return styled


def draw_uniform(generator: torch.Generator) -> float:
    """Draw a number in [0, 1)."""
    import torch  # not at import time: styles are taken without it

    return torch.rand((), generator=generator, dtype=torch.float64).item()


def _amplitude_change(
    own: npt.NDArray[np.complex128], wanted: npt.NDArray[np.float64], share: float
) -> npt.NDArray[np.complex128]:
    """Return what to add to ``own`` so that its amplitudes move by ``share`` to ``wanted``, phases kept."""
    amplitude: npt.NDArray[np.float64] = np.abs(own)
    mean = amplitude[:1, :, own.shape[2] // 2, None]
    heard = amplitude > _QUIET * mean
    phases = np.where(heard, own / np.where(heard, amplitude, 1.0), 1.0)
    return np.asarray(share * (wanted - amplitude) * phases, dtype=np.complex128)


def _moments(lab: StyleArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and standard deviation (of the whole, not of a sample) of each plane: [3], [3]."""
    planes = lab.reshape(3, -1)
    return planes.mean(axis=1).astype(np.float64), planes.std(axis=1).astype(np.float64)


def _apply_lab(image: Bytes, style: StyleArray) -> Bytes:
    lab = to_lab(image)
    mean, deviation = _moments(lab)
    # an image of one colour has no contrast to scale; float32 leaves it about 1e-6
    factor = np.where(deviation > 1e-4, style[1] / np.maximum(deviation, 1e-4), 1.0)
    offset = style[0] - factor * mean
    moved = lab * factor.astype(np.float32)[:, None, None] + offset.astype(np.float32)[:, None, None]
    return from_lab(moved)
