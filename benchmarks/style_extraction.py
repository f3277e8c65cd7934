"""How many images a second give their style, and take one on, beside a full Fourier transform?

Prints two tables. Taking: images of the common size to styles, on as many threads as asked for, against the
published way (full transform of each channel, amplitudes, shift, cut). Putting on: one image, against the full
transform and its inverse. The resize of an image of another size is a line of its own. Both ways are
checked against each other before they are timed, and timed in turns.

    python benchmarks/style_extraction.py [--height 512] [--width 1024] [--threads 2] [--images 24]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from common.settings.network import Style
from common.styles.style import apply_style, extract_style

WINDOWS = (1, 3, 7, 25, 51)
TURNS = 3
HEAD = (
    "| style | images/s | CPU ms an image | full transform, images/s | CPU ms an image | ratio of images/s |",
    "|:--|---:|---:|---:|---:|---:|",
)

Work = Callable[[np.ndarray], object]


def scenes(count: int, height: int, width: int) -> list[np.ndarray]:
    """Return pictures with light from above, as streets have, and texture: uint8 [H, W, 3]."""
    rng = np.random.default_rng(0)
    slope = np.linspace(210, 60, height)[:, None, None]
    textures = (rng.normal(0, 25, (height, width, 3)) for _ in range(count))
    return [np.clip(slope + texture, 0, 255).astype(np.uint8) for texture in textures]


def full_style(image: np.ndarray, side: int) -> np.ndarray:
    """Take a style as published, in the float32 arithmetic of today's numpy: [3, side, side]."""
    spectrum = np.fft.fft2(image.transpose(2, 0, 1).astype(np.float32))
    amplitude = np.fft.fftshift(np.abs(spectrum), axes=(1, 2))
    top, left = (length // 2 - side // 2 for length in image.shape[:2])
    return amplitude[:, top : top + side, left : left + side]


def full_apply(image: np.ndarray, style: np.ndarray) -> np.ndarray:
    """Put a style on as published: uint8 [H, W, 3]."""
    spectrum = np.fft.fft2(image.transpose(2, 0, 1).astype(np.float32))
    amplitude, phase = np.fft.fftshift(np.abs(spectrum), axes=(1, 2)), np.angle(spectrum)
    side = style.shape[1]
    top, left = (length // 2 - side // 2 for length in image.shape[:2])
    amplitude[:, top : top + side, left : left + side] = style
    back = np.fft.ifft2(np.fft.ifftshift(amplitude, axes=(1, 2)) * np.exp(1j * phase)).real
    return np.clip(np.rint(back), 0, 255).astype(np.uint8).transpose(1, 2, 0)


def rates(ways: Sequence[Work], images: Sequence[np.ndarray], threads: int) -> list[tuple[float, float]]:
    """Return images per second and milliseconds of CPU per image of each way, medians over turns.

    Processor time stays the same on a machine that others use too. Ways after the first see fewer images.
    """
    seconds: list[list[tuple[float, float]]] = [[] for _ in ways]
    with ThreadPoolExecutor(threads) as pool:
        for way in ways:  # matrices that are made once
            way(images[0])
        for _ in range(TURNS):
            for index, (way, taken) in enumerate(zip(ways, seconds, strict=True)):
                own = images[: max(threads, len(images) // 6)] if index else images
                start, spent = time.perf_counter(), time.process_time()
                list(pool.map(way, own))
                wall, processor = time.perf_counter() - start, time.process_time() - spent
                taken.append((len(own) / wall, 1000 * processor / len(own)))
    return [(median(rate for rate, _ in taken), median(cpu for _, cpu in taken)) for taken in seconds]


def row(name: str, ours: tuple[float, float], full: tuple[float, float] | None = None) -> str:
    """Return a line of a table."""
    if full is None:
        return f"| {name} | {ours[0]:.0f} | {ours[1]:.1f} | | | |"
    return f"| {name} | {ours[0]:.0f} | {ours[1]:.1f} | {full[0]:.1f} | {full[1]:.0f} | {ours[0] / full[0]:.1f} |"


def check(same: bool, what: str) -> None:
    """Stop where the two ways disagree: then their speed says nothing."""
    if not same:
        raise SystemExit(f"error: the two ways disagree on {what}")


def taking(images: Sequence[np.ndarray], size: tuple[int, int], threads: int) -> list[str]:
    """Measure how fast styles are taken; return the lines of a table."""
    lines = list(HEAD)
    for side in WINDOWS:
        chosen = Style(transfer="fourier", side=side, height=size[0], width=size[1])
        ours, full = extract_style(images[0], chosen), full_style(images[0], side)
        check(bool(np.abs(ours - full).max() < 1e-5 * full.max()), f"a window of {side}")
        ways: list[Work] = [
            lambda image, s=chosen: extract_style(image, s),  # type: ignore[misc]
            lambda image, n=side: full_style(image, n),  # type: ignore[misc]
        ]
        fast, slow = rates(ways, images, threads)
        lines.append(row(f"fourier, {side} x {side}", fast, slow))
    for transfer, more in (("spectra", {"side": 0, "fraction": 0.05}), ("lab", {})):
        settings = Style.model_validate(
            {"transfer": transfer, "height": size[0], "width": size[1], "images": 0, **more}
        )
        (fast,) = rates([lambda image, s=settings: extract_style(image, s)], images, threads)  # type: ignore[misc]
        lines.append(row(transfer, fast))
    large = [np.repeat(np.repeat(image, 2, axis=0), 2, axis=1) for image in images[:4]]
    (fast,) = rates(
        [lambda image: Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC)],
        large,
        threads,
    )
    lines.append(row("resize alone, from twice the size", fast))
    return lines


def putting_on(images: Sequence[np.ndarray], size: tuple[int, int], threads: int) -> list[str]:
    """Measure how fast images take a style on; return the lines of a table."""
    lines = list(HEAD)
    for side in WINDOWS:
        chosen = Style(transfer="fourier", side=side, height=size[0], width=size[1])
        style = 0.6 * extract_style(images[0], chosen)
        apart = apply_style(images[0], style, chosen).astype(int) - full_apply(images[0], style)
        check(bool(np.abs(apart).max() <= 1), f"the style of a window of {side}")
        ways: list[Work] = [
            lambda image, s=style, c=chosen: apply_style(image, s, c),  # type: ignore[misc]
            lambda image, s=style: full_apply(image, s),  # type: ignore[misc]
        ]
        fast, slow = rates(ways, images, threads)
        lines.append(row(f"fourier, {side} x {side}", fast, slow))
    lab = Style(transfer="lab")
    style = extract_style(images[-1], lab)
    (fast,) = rates([lambda image: apply_style(image, style, lab)], images, threads)
    lines.append(row("lab", fast))
    return lines


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2, help="images in work at once (default 2)")
    parser.add_argument("--images", type=int, default=24, help="images per turn (default 24)")
    asked = parser.parse_args()

    size = asked.height, asked.width
    images = scenes(asked.images, *size)
    print(f"Images of {size[0]} x {size[1]}, {asked.threads} threads, uint8 in\n")
    with threadpool_limits(limits=1):  # one thread an image: no two libraries fight for the cores
        print("\n".join(["Taking a style", "", *taking(images, size, asked.threads), ""]), flush=True)
        print("\n".join(["Putting a style on", "", *putting_on(images, size, asked.threads)]))


if __name__ == "__main__":
    main()
