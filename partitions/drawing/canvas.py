"""The canvas of a synthetic scene, which knows where a place on the road appears, and the objects drawn on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from partitions.drawing.conditions import Condition, Rgb

# train ids of the class table `synthetic`
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

    def rays(self) -> tuple[FloatMap, FloatMap]:
        """Return how far each pixel lies below the horizon [H, 1] and right of the vanishing point [1, W].

        Both are in units of the image height.
        """
        rows = (np.arange(self.height, dtype=np.float32) + 0.5) / self.height - self.horizon
        middle = np.arange(self.width, dtype=np.float32) + 0.5 - self.width / 2
        columns = middle / self.height - self.vanish
        return rows[:, None].astype(np.float32), columns[None, :].astype(np.float32)

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
        if rows.stop - rows.start < 2 or columns.stop - columns.start < 1:  # too far away to be seen
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


def facade_albedo(
    condition: Condition,
    rng: np.random.Generator,
    along: FloatMap,
    up: FloatMap,
    wall: FloatMap,
    seed: int,
    fade: FloatMap | float,
) -> FloatMap:
    """Return the albedo of a wall with storeys and windows; ``along`` and ``up`` in metres."""
    pane = (np.abs(along % 2.6 - 1.3) < 0.72) & (np.abs(up % 3.0 - 1.7) < 0.8) & (up > 0.6)
    bricks = 0.06 * np.sin(along * 9.0) * np.sin(up * 21.0) + 0.05 * noise(
        rng, along.shape[0], along.shape[1], 1.5
    )
    colour = wall * (1 + bricks)[..., None]
    # a hash of the window's place: the same windows are lit however the wall is cut
    cell = np.floor(along / 2.6) * 12.9898 + np.floor(up / 3.0) * 78.233 + seed
    lit = (np.abs(np.sin(cell) * 43758.547) % 1.0) < 0.4 * condition.light.lamps
    glass = np.where(lit[..., None], rgb((1.0, 0.82, 0.45)), wall * 0.28 + rgb((0.02, 0.05, 0.09)))
    weight = (pane * fade)[..., None]
    return np.asarray(colour * (1 - weight) + glass * weight, dtype=np.float32)


def _draw_house(canvas: Canvas, condition: Condition, rng: np.random.Generator, x: float, z: float) -> None:
    """Draw a house that faces the camera, ``x`` metres beside the road's middle, ``z`` metres away."""
    half = float(rng.uniform(5, 11))
    top = float(rng.integers(condition.place.storeys[0], condition.place.storeys[1] + 1)) * 3.2
    box = canvas.window(x, half, top, z)
    if box is None:
        return
    rows, columns, u, v = box
    along = np.broadcast_to((u + 1) * half, (v.shape[0], u.shape[1])).astype(np.float32)
    up = np.broadcast_to(v * top, along.shape).astype(np.float32)
    wall = vary(rng, condition.palette.facade, 0.16)
    colour = facade_albedo(condition, rng, along, up, wall, int(z), min(1.0, 26.0 / z))
    canvas.fill(rows, columns, np.ones(along.shape, dtype=np.bool_), colour, BUILDING, z)


def _draw_tree(canvas: Canvas, condition: Condition, rng: np.random.Generator, x: float, z: float) -> None:
    """Draw a tree: a trunk and a ragged crown of leaves."""
    top, half = float(rng.uniform(4.5, 8.5)), float(rng.uniform(1.6, 3.0))
    box = canvas.window(x, half, top, z)
    if box is None:
        return
    rows, columns, u, v = box
    shape = (v.shape[0], u.shape[1])
    scale = FOCAL / z * canvas.height
    ragged = noise(rng, *shape, max(1.5, 0.55 * scale))
    leaves = noise(rng, *shape, max(1.0, 0.16 * scale))
    crown = u**2 + ((v - 0.62) / 0.38) ** 2 + 0.16 * ragged < 0.92
    trunk = (np.abs(u) < 0.09) & (v < 0.4)
    bark = np.broadcast_to(rgb((0.2, 0.15, 0.1)), (*shape, 3))
    canvas.fill(rows, columns, trunk, np.ascontiguousarray(bark), TREE, z)
    light = 1 + 0.42 * leaves + 0.15 * ragged + 0.5 * (v - 0.62)
    green = vary(rng, condition.palette.tree, 0.12) * np.maximum(light, 0.15)[..., None]
    canvas.fill(rows, columns, crown, green.astype(np.float32), TREE, z)


def _draw_car(canvas: Canvas, condition: Condition, rng: np.random.Generator, x: float, z: float) -> None:
    """Draw a car from behind, or from the side where cars are parked."""
    sideways = condition.place.parked and rng.random() < 0.35
    half, top = (2.1, 1.5) if sideways else (0.95, float(rng.uniform(1.45, 1.8)))
    box = canvas.window(x, half, top, z)
    if box is None:
        return
    rows, columns, u, v = box
    hue = rng.random()
    paint = (
        vary(rng, condition.palette.car, 0.25)
        if hue < 0.6
        else vary(rng, (0.8, 0.8, 0.82) if hue < 0.8 else (0.12, 0.12, 0.14), 0.1)
    )
    slope = 1.1 if sideways else 0.55
    cabin = (v > 0.5) & (np.abs(u) < 0.92 - slope * np.maximum(v - 0.55, 0))
    body = (v > 0.16) & (v <= 0.58) & (np.abs(u) < 1 - 0.4 * np.maximum(0.24 - v, 0))
    at = 0.58 if sideways else 0.74
    wheel = (np.abs(np.abs(u) - at) < 0.17) & (v < 0.3)
    shadow = (v < 0.16) & (np.abs(u) < 1)
    canvas.colour[rows, columns][shadow] *= 0.35
    shape = np.broadcast_shapes(u.shape, v.shape)
    gloss = paint * np.broadcast_to(0.72 + 0.55 * v, shape)[..., None]
    canvas.fill(rows, columns, body | cabin, gloss.astype(np.float32), CAR, z)
    pillar = np.abs(u) < 0.06 if sideways else np.zeros_like(u, dtype=np.bool_)
    glass = (v > 0.6) & (v < 0.93) & (np.abs(u) < 0.78 - slope * np.maximum(v - 0.55, 0)) & ~pillar
    canvas.colour[rows, columns][glass] = (0.1, 0.14, 0.19)
    canvas.fill(rows, columns, np.broadcast_to(wheel, shape), rgb((0.04, 0.04, 0.045)), CAR, z)
    lamp = (np.abs(np.abs(u) - 0.84) < 0.11) & (np.abs(v - 0.46) < 0.07)
    canvas.colour[rows, columns][lamp] = (0.85, 0.08, 0.06)
    canvas.glow[rows, columns][lamp] = 1.0


def _draw_person(canvas: Canvas, condition: Condition, rng: np.random.Generator, x: float, z: float) -> None:
    """Draw someone standing or walking."""
    top = float(rng.uniform(1.6, 1.9))
    box = canvas.window(x, 0.36, top, z)
    if box is None:
        return
    rows, columns, u, v = box
    stride = float(rng.uniform(0.15, 0.5))
    head = (u / 0.32) ** 2 + ((v - 0.92) / 0.075) ** 2 < 1
    torso = (v > 0.45) & (v < 0.85) & (np.abs(u) < 0.78 - 0.4 * (v - 0.45))
    legs = (v <= 0.46) & (np.abs(np.abs(u) - stride * (0.5 - v)) < 0.26)
    canvas.fill(rows, columns, legs, vary(rng, (0.16, 0.17, 0.26), 0.3), PERSON, z)
    stripes = 1 + 0.22 * np.sign(np.sin(v * 70))
    coat = vary(rng, condition.palette.cloth, 0.2) * np.broadcast_to(stripes, torso.shape)[..., None]
    canvas.fill(rows, columns, torso, coat.astype(np.float32), PERSON, z)
    canvas.fill(rows, columns, head, vary(rng, (0.75, 0.55, 0.42), 0.2), PERSON, z)


def _spots(rng: np.random.Generator, per_ten_metres: float, nearest: float) -> npt.NDArray[np.float64]:
    """Return distances in metres, denser close by, where things are large enough to be seen."""
    count = rng.poisson(per_ten_metres * (60 - nearest) / 10)
    return nearest + (60 - nearest) * rng.random(count) ** 1.7


def draw_objects(canvas: Canvas, condition: Condition, rng: np.random.Generator) -> None:
    """Draw houses, trees, cars and persons along the road, the farthest first."""
    place = condition.place
    edge = place.road + place.pavement
    todo: list[tuple[float, float, int]] = []

    def side() -> float:
        return float(rng.choice((-1.0, 1.0)))

    if 0 < place.facades <= 0.5:
        for z in rng.uniform(30, 80, size=rng.poisson(place.facades * 9)):
            todo.append((float(z), side() * float(rng.uniform(edge + 9, edge + 30)), BUILDING))
    for z in _spots(rng, place.trees, 7.0):
        beyond = 0.2 if place.facades > 0.5 else float(rng.exponential(5.0)) + 2.5
        todo.append((float(z), side() * (edge + beyond - (1.4 if place.facades > 0.5 else 0.0)), TREE))
    for z in _spots(rng, place.cars, 5.5):
        if place.parked:
            x = side() * (place.road - float(rng.uniform(0.5, 1.5) + 2.6 * rng.integers(2)))
            z = round(z / 2.6) * 2.6 + 2.6
        else:
            lane = int(rng.integers(place.lanes))
            x = (2 * lane + 1 - place.lanes) * place.road / place.lanes
            x += float(rng.uniform(-0.4, 0.4))
            if abs(x + canvas.offset) < 1.5:  # our own lane: keep the distance
                z += 6.0
        todo.append((float(z), x, CAR))
    for z in _spots(rng, place.persons, 4.5):
        walk = place.road + float(rng.uniform(0.3, max(place.pavement, 1.2) - 0.2))
        if rng.random() < (0.5 if place.parked else 0.1):
            walk = float(rng.uniform(1.0, place.road))
        todo.append((float(z), side() * walk, PERSON))
    painters = {BUILDING: _draw_house, TREE: _draw_tree, CAR: _draw_car, PERSON: _draw_person}
    for z, x, kind in sorted(todo, reverse=True):
        painters[kind](canvas, condition, rng, x, z)
