"""Canvas of a synthetic scene, and the projection of places on the road into the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from partitions.drawing.conditions import Rgb

SKY, BUILDING, ROAD, PAVEMENT, GRASS, TREE, CAR, PERSON = range(8)

FloatMap = npt.NDArray[np.float32]
CAMERA = 1.45  # metres above the road
FAR = 95.0  # nothing is drawn beyond, in metres
FOCAL = 0.95  # in units of the image height


def noise(rng: np.random.Generator, height: int, width: int, cell: float) -> FloatMap:
    """Return smooth noise [height, width] of unit variance whose features are ``cell`` pixels wide."""
    rows, columns = max(2, round(height / cell)), max(2, round(width / cell))
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    if (rows, columns) == (height, width):
        return coarse
    fine = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.asarray(fine / (fine.std() + 1e-6), dtype=np.float32)


@dataclass
class Canvas:
    """What has been drawn so far: albedo [H, W, 3], label [H, W], distance [H, W] in metres, glow [H, W]."""

    colour: FloatMap
    label: npt.NDArray[np.uint8]
    distance: FloatMap
    glow: FloatMap
    horizon: float  # row of infinity, in units of the image height
    vanish: float  # column of infinity, in units of the image height from the centre
    offset: float  # metres from the camera to the middle of the road

    @property
    def height(self) -> int:
        return int(self.label.shape[0])

    @property
    def width(self) -> int:
        return int(self.label.shape[1])

    def fill(
        self,
        rows: slice,
        columns: slice,
        mask: npt.NDArray[np.bool_],
        colour: FloatMap,
        label: int,
        z: FloatMap | float,
    ) -> None:
        """Draw ``colour`` where ``mask`` holds inside the window."""
        self.colour[rows, columns][mask] = colour if colour.ndim == 1 else colour[mask]
        self.label[rows, columns][mask] = label
        self.distance[rows, columns][mask] = z[mask] if isinstance(z, np.ndarray) else z

    def window(
        self, x: float, half: float, top: float, z: float
    ) -> tuple[slice, slice, FloatMap, FloatMap] | None:
        """Return the pixels of an upright box and their place in it, or None where it is out of sight.

        ``x`` metres right of the road's middle, ``half`` metres to either side, ``top`` metres high,
        ``z`` metres away. Place: u in -1..1 across, v in 0..1 upwards.
        """
        scale = FOCAL / z * self.height  # pixels per metre
        centre = self.width / 2 + self.vanish * self.height + (x + self.offset) * scale
        foot = self.horizon * self.height + CAMERA * scale
        y0, y1 = int(foot - top * scale), int(np.ceil(foot))
        x0, x1 = int(centre - half * scale), int(np.ceil(centre + half * scale))
        rows = slice(max(y0, 0), min(y1, self.height))
        columns = slice(max(x0, 0), min(x1, self.width))
        if rows.stop - rows.start < 2 or columns.stop - columns.start < 1:
            return None
        v = (foot - np.arange(rows.start, rows.stop) - 0.5) / (top * scale)
        u = (np.arange(columns.start, columns.stop) + 0.5 - centre) / (half * scale)
        return rows, columns, u.astype(np.float32)[None, :], v.astype(np.float32)[:, None]


def rgb(colour: Rgb) -> FloatMap:
    """Return a colour as float32 [3]."""
    return np.asarray(colour, dtype=np.float32)


def vary(rng: np.random.Generator, colour: Rgb, amount: float) -> FloatMap:
    """Return a colour nearby: brightness changes more than hue."""
    change = 1 + amount * rng.standard_normal() + 0.35 * amount * rng.standard_normal(3)
    return np.clip(rgb(colour) * change, 0.02, 1.0).astype(np.float32)
