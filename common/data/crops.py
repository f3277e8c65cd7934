"""Crops of an image that an entry of a manifest can stand for: the whole, or one of five views.

Wide scenes lose much when they are squeezed into the input of a backbone, so the published method trains on
five views of every photo: the four corners and the centre, half as high and half as wide. A view is cut when
it is read; no file is written. Everything that looks at the pixels of a shard comes through here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

VIEWS: dict[str, tuple[float, float]] = {
    "top-left": (0.0, 0.0),
    "top-right": (0.0, 1.0),
    "bottom-left": (1.0, 0.0),
    "bottom-right": (1.0, 1.0),
    "center": (0.5, 0.5),
}
"""Views by name: which share of the spare height lies above it, of the spare width to its left."""


def view_box(view: str | None, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the part of a photo that a view shows, in pixels: left, top, right, bottom; None: all of it."""
    if view is None:
        return 0, 0, width, height
    down, across = VIEWS[view]
    high, wide = max(1, height // 2), max(1, width // 2)
    top, left = round(down * (height - high)), round(across * (width - wide))
    return left, top, left + wide, top + high


def cut(pixels: Bytes, view: str | None) -> Bytes:
    """Return what a view shows of a photo or a label map [H, W, ...]."""
    if view is None:
        return pixels
    left, top, right, bottom = view_box(view, *pixels.shape[:2])
    return np.ascontiguousarray(pixels[top:bottom, left:right])
