"""How well is a class found, the rarer it is: IoU against the share of pixels, one curve a recipe?

What makes a class rare for a loss is how seldom it is shown. So shares are those of the labels that sites train on,
as the folder of their shards counts them; where nobody counted, those of the scored test set: the column sums of its
confusion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from common.data.manifest import read_partition
from common.errors import UserError
from common.settings.section import flatten
from server.report.charts import GRID, INK, SOFT, percent, percent_tick, svg_open, svg_text
from server.report.data import Run

Curve = tuple[str, str, Mapping[str, float]]
"""A recipe's name, its colour, and IoU by class."""

RAREST = 5
"""How many classes a mean over the rarest takes in."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 20, 12, 118
_GAP = 17
_MARGIN = 0.12
"""Room left and right of the outermost classes, in powers of ten."""


def class_shares(run: Run) -> dict[str, float]:
    """Return the share of labelled pixels of each class, of the first set in the last scored round; {} if unknown.

    Classes without pixels are left out.
    """
    for row in reversed(run.rows):
        counts, names = row.get("confusion"), list(row.get("per_class_iou") or {})
        if not counts or len(counts[0]) != len(names):
            continue
        pixels = [sum(int(line[index]) for line in counts) for index in range(len(names))]
        total = sum(pixels)
        return {name: count / total for name, count in zip(names, pixels, strict=True) if count}
    return {}


def trained_shares(run: Run) -> dict[str, float]:
    """Return the share of labelled pixels of each class in the sites' training images; {} if unknown.

    Known to task 'supervised' where the shards' ``partition.json`` is at hand. Classes without pixels are left out.
    """
    flat = flatten(run.config)
    if flat.get("task") != "supervised" or not flat.get("simulation.shards"):
        return {}
    try:
        partition = read_partition(str(flat["simulation.shards"]))
    except UserError:
        return {}
    if not partition.histogram or partition.classes is None:
        return {}
    try:
        counts = [sum(map(int, column)) for column in zip(*partition.histogram.values(), strict=True)]
    except (AttributeError, TypeError, ValueError):  # a report does without what somebody broke
        return {}
    if len(counts) != partition.classes.num_classes or not sum(counts):
        return {}
    return {
        name: count / sum(counts)
        for name, count in zip(partition.classes.names, counts, strict=True)
        if count
    }


def rarest(shares: Mapping[str, float], count: int = RAREST) -> list[str]:
    """Return the ``count`` classes with fewest pixels, the rarest first; of equals the first by name."""
    return sorted(shares, key=lambda name: (shares[name], name))[:count]


def frequency_chart(
    shares: Mapping[str, float], curves: Sequence[Curve], *, width: int = 1060, height: int = 420
) -> str:
    """Draw IoU (0 to 1) over the share of pixels (logarithmic): a dot a class and recipe, joined by recipe."""
    if not shares or not any(values for _, _, values in curves):
        return '<p class="soft">No labels were counted yet.</p>'
    low, high = math.log10(min(shares.values())) - _MARGIN, math.log10(max(shares.values())) + _MARGIN
    bottom = height - _BOTTOM
    most = max((value for _, _, values in curves for value in values.values()), default=1.0)
    top_value = max(0.1, math.ceil(most * 10 - 1e-9) / 10)

    def x_of(share: float) -> float:
        return _LEFT + (math.log10(share) - low) / (high - low) * (width - _LEFT - _RIGHT)

    def y_of(value: float) -> float:
        return bottom - value / top_value * (bottom - _TOP)

    parts = [svg_open(width, height)]
    for level in range(0, round(top_value * 10) + 1, 1 if top_value <= 0.5 else 2):
        y = y_of(level / 10)
        parts.append(f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(svg_text(_LEFT - 8, y + 4, percent_tick(level / 10), anchor="end"))
    for share in _decades(low, high):
        x = x_of(share)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}" stroke="{GRID}"/>')
        parts.append(svg_text(x, bottom + 15, percent_tick(share), anchor="middle"))
    ordered = sorted(shares, key=lambda name: (shares[name], name))
    parts += _class_names(ordered, [x_of(shares[name]) for name in ordered], bottom, width)
    for name, colour, values in curves:
        parts += _curve(name, colour, [(n, x_of(shares[n]), values[n]) for n in ordered if n in values], y_of)
    parts.append(svg_text((_LEFT + width - _RIGHT) / 2, height - 2, "share of pixels", anchor="middle"))
    return "".join([*parts, "</svg>"])


def _decades(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten between 10^low and 10^high, at most 1."""
    marks = [step * 10.0**power for power in range(math.floor(low), 1) for step in (1, 2, 5)]
    return [mark for mark in marks if low <= math.log10(mark) <= high and mark <= 1]


def _class_names(names: Sequence[str], places: Sequence[float], bottom: float, width: float) -> list[str]:
    """Write the classes' names aslant under the axis, moved apart, each with a line to its place."""
    slots: list[float] = []
    for x in places:
        slots.append(max(x, slots[-1] + _GAP) if slots else x)
    ceiling = width - _RIGHT
    for index in range(len(slots) - 1, -1, -1):
        slots[index] = min(slots[index], ceiling)
        ceiling = slots[index] - _GAP
    parts = []
    for name, x, slot in zip(names, places, slots, strict=True):
        line = f"M{x:.1f},{_TOP} V{bottom:.1f}"
        parts.append(f'<path d="{line}" fill="none" stroke="{GRID}" stroke-dasharray="2 4"/>')
        lead = f"M{x:.1f},{bottom + 20:.1f} L{slot:.1f},{bottom + 32:.1f}"
        parts.append(f'<path d="{lead}" fill="none" stroke="{SOFT}" stroke-width="0.8"/>')
        parts.append(
            f'<text transform="translate({slot + 3:.1f},{bottom + 42:.1f}) rotate(-42)" font-size="12" '
            f'text-anchor="end" fill="{INK}">{escape(name)}</text>'
        )
    return parts


def _curve(
    name: str, colour: str, points: Sequence[tuple[str, float, float]], y_of: Callable[[float], float]
) -> list[str]:
    """Draw one recipe's dots; class and value show on hovering."""
    path = " ".join(f"{x:.1f},{y_of(value):.1f}" for _, x, value in points)
    stroke = f'stroke="{colour}" stroke-width="1.6" stroke-opacity="0.55" stroke-linejoin="round"'
    parts = [f'<polyline points="{path}" fill="none" {stroke}><title>{escape(name)}</title></polyline>']
    for one, x, value in points:
        said = escape(f"{name}: {one} {percent(value)}")
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y_of(value):.1f}" r="4" fill="{colour}" fill-opacity="0.9" '
            f'stroke="#fff"><title>{said}</title></circle>'
        )
    return parts
