"""Draws synthetic street scenes with their label maps, and writes them to the disk.

They serve the demo and the tests. Every site is a drive of its own (place, light, palette), and one more drive mixes
the conditions of the sites. Figures made on them say that the system works, not how good it is on photographs.

A pinhole camera looks along a road. The ground, the facades on both sides and upright objects are drawn from far to
near with their distance in meters. Then light and air are applied to everything at once. Every class has a texture
of its own (grain, tiles, windows, blades, leaves), by which local statistics tell classes apart. Colors change from
site to site.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from common.data.manifest import Entry
from common.seeds import numpy_generator
from common.system.cli import Progress
from partitions.drawing.canvas import (
    BUILDING,
    CAMERA,
    FAR,
    FOCAL,
    GRASS,
    PAVEMENT,
    ROAD,
    SKY,
    Canvas,
    FloatMap,
    draw_objects,
    facade_albedo,
    noise,
    rgb,
    vary,
)
from partitions.drawing.conditions import Condition, site_condition, unseen_condition

VERSION = 1  # counts up when the same seed draws other images


def _draw_ground(canvas: Canvas, condition: Condition, rng: np.random.Generator) -> None:
    h, w = canvas.height, canvas.width
    place, palette = condition.place, condition.palette
    rows, columns = canvas.rays()
    first = int(np.searchsorted(rows[:, 0], FOCAL * CAMERA / 2000.0))  # from there on the ground is in sight
    rows = rows[first:]
    z = np.broadcast_to(FOCAL * CAMERA / rows, (h - first, w)).astype(np.float32)
    x = columns * z / FOCAL - canvas.offset
    side = np.abs(x)
    sharp = np.clip(18.0 / z, 0, 1)  # texture fades where a pixel covers metres

    grain = noise(rng, h - first, w, 1)
    coarse = noise(rng, h - first, w, 6)
    blades = noise(rng, h - first, w, 2.2)
    ground = slice(first, h), slice(0, w)

    grass = rgb(palette.grass) * (1 + (0.24 * blades + 0.14 * coarse) * (0.35 + 0.65 * sharp))[..., None]
    canvas.fill(*ground, np.ones_like(z, dtype=np.bool_), grass, GRASS, z)

    built = place.road + place.pavement + (40.0 if place.facades > 0.5 else 0.0)
    if place.pavement:
        joint = (np.abs((x % 0.9) - 0.45) > 0.38) | (np.abs((z % 0.9) - 0.45) > 0.38)
        tiles = rgb(palette.pavement) * (1 + 0.05 * grain - 0.28 * joint * sharp)[..., None]
        canvas.fill(*ground, side < built, tiles, PAVEMENT, z)

    asphalt = rgb(palette.road) * (1 + 0.13 * grain + 0.06 * coarse)[..., None]
    canvas.fill(*ground, side < place.road, asphalt, ROAD, z)
    edges = np.abs(side - place.road + 0.35) < 0.11
    if place.parked:
        lines = (np.abs((z % 2.6) - 1.3) < 0.09) & (side > place.road - 5.2) & (side < place.road)
    else:
        step = 2 * place.road / place.lanes
        middle = np.abs(((x + place.road) % step) - step / 2) > step / 2 - 0.1
        lines = (middle & (z % 9 < 4.5) & (side < place.road - 1)) | edges
    canvas.colour[ground][lines & (z < 45)] = np.float32(0.82)


def _draw_walls(canvas: Canvas, condition: Condition, rng: np.random.Generator) -> None:
    """Draw the two rows of houses of a built-up street, in perspective."""
    place = condition.place
    h, w = canvas.height, canvas.width
    reach = place.road + place.pavement
    rows, columns = canvas.rays()
    for sign in (-1.0, 1.0):
        lateral = np.float32(reach + sign * canvas.offset)
        z: FloatMap = (lateral * FOCAL / np.maximum(sign * columns, 1e-4)).astype(np.float32)
        ahead = (sign * columns > 0) & (z < FAR)
        up: FloatMap = (CAMERA - rows * z / FOCAL).astype(np.float32)
        edges = np.cumsum(rng.uniform(7, 16, size=16))
        house = np.searchsorted(edges, np.minimum(z[0], edges[-1] - 1e-3))
        heights = rng.uniform(*place.storeys, size=16) * 3.0
        heights[rng.random(16) > place.facades] = 0.0
        walls = np.stack([vary(rng, condition.palette.facade, 0.16) for _ in range(16)])
        mask = ahead & (up > 0) & (up < heights[house].astype(np.float32)[None, :])
        along = np.broadcast_to(z, (h, w)).astype(np.float32)
        fade = np.clip(26.0 / along, 0, 1).astype(np.float32)
        shade = np.float32(1.0 if sign > 0 else 0.82)
        wall = (walls[house][None] * shade).astype(np.float32)
        colour = facade_albedo(condition, rng, along, up, wall, int(sign), fade)
        canvas.fill(slice(0, h), slice(0, w), mask, colour, BUILDING, along)


def _shine(canvas: Canvas, condition: Condition, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Apply lamp, air and camera to the albedo: uint8 [H, W, 3]."""
    light = condition.light
    h, w = canvas.height, canvas.width
    air = rgb(light.horizon)
    rows = np.arange(h, dtype=np.float32)[:, None] / h
    height = np.clip(1 - rows / max(canvas.horizon, 0.05), 0, 1)[..., None]
    sky = air * (1 - height) + rgb(light.zenith) * height
    clouds = np.clip(noise(rng, h, w, h / 5) + 0.4 * noise(rng, h, w, h / 14), 0, 2)
    sky = sky + (air + 0.08 - sky) * (0.3 * clouds * min(1.0, light.haze / 150))[..., None]

    lit = canvas.colour * (rgb(light.tint) * light.gain)
    if light.lamps:
        beam = light.lamps * np.exp(-((canvas.distance - 9.0) ** 2) / 140.0) * (rows > canvas.horizon)
        lit = lit + canvas.colour * (0.55 * beam)[..., None] * rgb((1.0, 0.9, 0.7))
        lit = lit + canvas.colour * (canvas.glow * light.lamps)[..., None]
    lit = np.mean(lit) + (lit - np.mean(lit)) * light.contrast
    through = np.exp(-canvas.distance / light.haze)[..., None]
    seen = lit * through + air * (1 - through)
    seen = np.where((canvas.label == SKY)[..., None], sky, seen)
    seen = seen * np.float32(rng.uniform(0.92, 1.08))
    seen = seen + light.noise * rng.standard_normal((h, w, 1), dtype=np.float32)
    return np.asarray(np.clip(seen * 255, 0, 255), dtype=np.uint8)


def _render(
    condition: Condition, size: tuple[int, int], rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw one scene: image uint8 [H, W, 3] and train ids uint8 [H, W] of table ``synthetic``."""
    h, w = size
    lane = condition.place.road / max(condition.place.lanes, 2)
    canvas = Canvas(
        colour=np.zeros((h, w, 3), dtype=np.float32),
        label=np.full((h, w), SKY, dtype=np.uint8),
        distance=np.full((h, w), 1e4, dtype=np.float32),
        glow=np.zeros((h, w), dtype=np.float32),
        horizon=float(rng.uniform(0.38, 0.5)),
        vanish=float(rng.uniform(-0.18, 0.18)),
        offset=float(rng.uniform(-0.3, 0.3) - lane * (not condition.place.parked)),
    )
    _draw_ground(canvas, condition, rng)
    if condition.place.facades > 0.5:
        _draw_walls(canvas, condition, rng)
    draw_objects(canvas, condition, rng)
    return _shine(canvas, condition, rng), canvas.label


def make_scenes(
    data: Path,
    drives: int,
    images: int,
    unseen: int,
    size: tuple[int, int],
    seed: int,
    progress: Progress | None = None,
) -> tuple[list[list[Entry]], list[Entry]]:
    """Draw images and label maps below ``data``: entries of every drive, entries of the unseen one.

    ``images`` are those of each drive, ``unseen`` those of the drive that no site holds, ``size`` is (height, width).
    A scene depends on seed, drive and its number alone: more images or drives leave those of a smaller set as they
    were. The unseen drive mixes the conditions of the drives asked for.
    """
    conditions = [site_condition(drive, numpy_generator(seed, "site", drive)) for drive in range(drives)]
    total = drives * images + unseen
    done = 0

    def draw(condition: Condition, folder: str, number: int, rng: np.random.Generator, domain: str) -> Entry:
        nonlocal done
        image, label = f"images/{folder}/{number:04d}.jpg", f"labels/{folder}/{number:04d}.png"
        for path in (data / image, data / label):
            path.parent.mkdir(parents=True, exist_ok=True)
        pixels, ids = _render(condition, size, rng)
        Image.fromarray(pixels).save(data / image, quality=92, subsampling=0)
        Image.fromarray(ids).save(data / label, compress_level=1)
        done += 1
        if progress is not None:
            progress(done, total)
        return Entry(image, label, domain)

    shards = []
    for drive, condition in enumerate(conditions):
        domain = condition.name if drive < 20 else f"{condition.name}-{drive // 20 + 1}"
        folder = f"{drive:02d}-{condition.name}"
        rngs = [numpy_generator(seed, "scene", drive, i) for i in range(images)]
        shards.append([draw(condition, folder, i, rng, domain) for i, rng in enumerate(rngs)])
    mixed = []
    for i in range(unseen):
        rng = numpy_generator(seed, "unseen", i)
        condition = unseen_condition(conditions, rng)
        mixed.append(draw(condition, "unseen", i, rng, condition.name))
    return shards, mixed
