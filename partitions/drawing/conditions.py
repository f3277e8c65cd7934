"""Conditions of a synthetic drive: surroundings, light and colors.

A drive is a place (which classes stand where), a light (what air and lamp do to colors) and a palette (the colors of
things). Sites differ in all three, so that class mixes and pixel statistics are not identically
distributed.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, fields

import numpy as np

Rgb = tuple[float, ...]  # red, green, blue, 0..1


@dataclass(frozen=True)
class Place:
    """Geometry in metres and how often things stand along the road."""

    name: str
    road: float  # half width
    pavement: float  # width on either side, 0: none
    facades: float  # share of the roadside that is built up
    trees: float  # expected trees per 10 m of road
    cars: float
    persons: float
    storeys: tuple[int, int]
    lanes: int
    parked: bool = False  # cars stand in rows instead of driving in lanes


@dataclass(frozen=True)
class Light:
    """Multipliers and colours in 0..1; ``haze`` is the distance in metres at which air hides 63 %."""

    name: str
    gain: float
    tint: Rgb
    zenith: Rgb
    horizon: Rgb
    haze: float
    noise: float
    contrast: float = 1.0
    lamps: float = 0.0


@dataclass(frozen=True)
class Palette:
    """Albedo of each material, 0..1."""

    facade: Rgb
    road: Rgb
    pavement: Rgb
    grass: Rgb
    tree: Rgb
    car: Rgb
    cloth: Rgb


PLACES = (
    Place("city", 4.2, 2.6, 0.95, 0.25, 0.8, 2.0, (3, 7), 2),
    Place("countryside", 3.0, 0.0, 0.06, 1.7, 0.15, 0.05, (1, 2), 2),
    Place("carpark", 6.8, 2.6, 0.35, 0.3, 2.6, 0.6, (1, 3), 0, parked=True),
    Place("motorway", 7.6, 0.0, 0.0, 0.8, 1.2, 0.0, (1, 1), 4),
)

LIGHTS = (
    Light("day", 1.0, (1.0, 1.0, 0.98), (0.30, 0.52, 0.86), (0.72, 0.84, 0.95), 400.0, 0.012),
    Light("dusk", 0.62, (1.1, 0.86, 0.72), (0.33, 0.30, 0.50), (0.98, 0.62, 0.36), 180.0, 0.02, 1.1, 0.25),
    Light("fog", 0.86, (0.96, 0.99, 1.02), (0.74, 0.77, 0.80), (0.82, 0.84, 0.86), 32.0, 0.012, 0.75),
    Light("night", 0.36, (0.86, 0.92, 1.18), (0.03, 0.05, 0.13), (0.16, 0.15, 0.22), 90.0, 0.03, 1.15, 0.9),
    Light("rain", 0.6, (0.88, 0.97, 1.08), (0.42, 0.46, 0.52), (0.58, 0.62, 0.66), 75.0, 0.03, 0.85, 0.2),
)


@dataclass(frozen=True)
class Condition:
    """What one drive (one site) looks like."""

    place: Place
    light: Light
    palette: Palette

    @property
    def name(self) -> str:
        """For example ``city-day``."""
        return f"{self.place.name}-{self.light.name}"


def _hsv(hue: float, saturation: float, value: float) -> Rgb:
    return colorsys.hsv_to_rgb(hue % 1.0, saturation, value)


def _draw_palette(rng: np.random.Generator) -> Palette:
    """Draw the materials of one site: brick or plaster, fresh or dry grass, spring or autumn leaves."""
    u = rng.uniform
    return Palette(
        facade=_hsv(u(0.0, 0.13), u(0.15, 0.6), u(0.5, 0.85)),
        road=_hsv(u(0.55, 0.75), u(0.02, 0.12), u(0.27, 0.42)),
        pavement=_hsv(u(0.03, 0.12), u(0.08, 0.28), u(0.58, 0.74)),
        grass=_hsv(u(0.18, 0.31), u(0.45, 0.7), u(0.45, 0.62)),
        tree=_hsv(u(0.22, 0.38) if u() < 0.75 else u(0.07, 0.12), u(0.5, 0.75), u(0.2, 0.34)),
        car=_hsv(u(), u(0.55, 0.9), u(0.5, 0.9)),
        cloth=_hsv(u(0.9, 1.12), u(0.6, 0.9), u(0.65, 0.95)),
    )


def _mix(a: Palette, b: Palette, share: float) -> Palette:
    """Return a palette between two, ``share`` of the way from ``a`` to ``b``."""

    def between(x: Rgb, y: Rgb) -> Rgb:
        return tuple(u + share * (v - u) for u, v in zip(x, y, strict=True))

    return Palette(**{f.name: between(getattr(a, f.name), getattr(b, f.name)) for f in fields(Palette)})


def site_condition(site: int, rng: np.random.Generator) -> Condition:
    """Return the drive of a site: the first twenty sites differ in place or light, all in palette.

    Four places and five lights have no common factor, so their pairs repeat only after twenty.
    """
    return Condition(PLACES[site % len(PLACES)], LIGHTS[site % len(LIGHTS)], _draw_palette(rng))


def unseen_condition(sites: list[Condition], rng: np.random.Generator) -> Condition:
    """Return a drive between those of the sites that none of them has made.

    Place from one site, light from another, palette between two: with several sites, the pair of
    place and light is one that no site holds.
    """
    held = {site.name for site in sites}
    places = {site.place.name: site.place for site in sites}
    lights = {site.light.name: site.light for site in sites}
    pairs = [(p, q) for p in places.values() for q in lights.values() if f"{p.name}-{q.name}" not in held]
    if not pairs:  # a single site: the same drive in other colours
        pairs = [(site.place, site.light) for site in sites]
    place, light = pairs[int(rng.integers(len(pairs)))]
    first, second = (sites[int(i)].palette for i in rng.integers(len(sites), size=2))
    return Condition(place, light, _mix(first, second, float(rng.uniform(0.25, 0.75))))
