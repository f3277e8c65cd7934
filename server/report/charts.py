"""How is a figure drawn as SVG, so that a report needs neither scripts nor other files?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

Point = tuple[float, float]
Series = tuple[str, str, Sequence[Point]]

INK, SOFT, GRID = "#1f2937", "#6b7280", "#e5e7eb"
SERIES_COLOURS = (
    *("#2563eb", "#ea7317", "#15966b", "#b4315f", "#7c4fc4", "#4b7f95", "#a16207", "#475569"),
    *("#0ea5e9", "#dc2626", "#65a30d", "#db2777", "#4338ca", "#0d9488", "#c2955a", "#94a3b8"),
)


def percent(value: float) -> str:
    """0.2345 -> 23.5 %."""
    return f"{100 * value:.1f} %"


def percent_tick(value: float) -> str:
    """0.25 -> 25 %, for an axis."""
    return f"{100 * value:g} %"


def short(value: float) -> str:
    """Three significant digits, no exponent where it can be avoided."""
    return f"{value:.3g}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about ``count`` round numbers that cover low..high."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    label: Callable[[float], str] = short,
    tick: Callable[[float], str] | None = None,
    width: int = 520,
    height: int = 230,
    from_zero: bool = False,
    x_name: str = "round",
) -> str:
    """Draw curves over rounds; each ends in a dot with its last value (its name shows on hovering)."""
    points = [point for _, _, curve in series for point in curve]
    if not points:
        return '<p class="soft">No values yet.</p>'
    left, right, top, bottom = 54, 62, 12, 34
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = min(y for _, y in points), max(y for _, y in points)
    if from_zero:
        low_y = min(0.0, low_y)
    if high_y - low_y < 1e-9 * max(1.0, abs(high_y)):
        low_y, high_y = low_y - 0.5 * (abs(low_y) or 1), high_y + 0.5 * (abs(high_y) or 1)
    levels = ticks(low_y, high_y)
    low_y, high_y = levels[0], levels[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        share_x = (x - low_x) / (high_x - low_x) if high_x > low_x else 0.5
        share_y = (y - low_y) / (high_y - low_y)
        return left + share_x * (width - left - right), height - bottom - share_y * (height - top - bottom)

    parts = [svg_open(width, height)]
    for level in levels:
        _, y = place(low_x, level)
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(svg_text(left - 8, y + 4, (tick or label)(level), anchor="end"))
    step = max(1, math.ceil((high_x - low_x) / 10))
    for number in range(math.ceil(low_x), math.floor(high_x) + 1, step):
        x, _ = place(number, low_y)
        parts.append(svg_text(x, height - bottom + 17, str(number), anchor="middle"))
    parts.append(svg_text((left + width - right) / 2, height - 2, x_name, anchor="middle"))
    ends: list[tuple[float, float, str, str]] = []
    for name, colour, curve in series:
        if not curve:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2" '
            f'stroke-linejoin="round" stroke-linecap="round"><title>{escape(name)}</title></polyline>'
        )
        for x, y in (place(*point) for point in curve) if len(curve) <= 30 else ():
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="#fff" stroke="{colour}" '
                'stroke-width="1.6"/>'
            )
        x, y = place(*curve[-1])
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{colour}"/>')
        ends.append((x, y, label(curve[-1][1]), colour))
    for where in sorted({x for x, _, _, _ in ends}):  # curves of one length end above one another
        together = [end for end in ends if end[0] == where]
        for x, y, text, colour in _spread(together, gap=15, low=top + 6, high=height - bottom):
            parts.append(svg_text(x + 9, y + 4, text, colour=colour, weight=600))
    return "".join([*parts, "</svg>"])


def _spread(
    ends: list[tuple[float, float, str, str]], gap: float, low: float, high: float
) -> list[tuple[float, float, str, str]]:
    """Move end labels apart vertically so that none covers another; none where there is no room for all."""
    if (len(ends) - 1) * gap > high - low:
        return []
    ordered = sorted(ends, key=lambda end: end[1])
    heights: list[float] = []
    for _, y, _, _ in ordered:
        heights.append(max(y, heights[-1] + gap) if heights else max(y, low))
    overflow = max(0.0, heights[-1] - high) if heights else 0.0
    for index in range(len(heights) - 1, -1, -1):
        ceiling = high if index == len(heights) - 1 else heights[index + 1] - gap
        heights[index] = min(heights[index], ceiling) if overflow else heights[index]
    return [(x, y, text, colour) for (x, _, text, colour), y in zip(ordered, heights, strict=True)]


def dot_plot(
    groups: Sequence[tuple[str, str, Sequence[float]]],
    *,
    label: Callable[[float], str] = percent,
    width: int = 760,
) -> str:
    """Draw one row a method: a dot per seed, a bar from 0 to the mean."""
    values = [value for _, _, group in groups for value in group]
    if not values:
        return '<p class="soft">No scores yet.</p>'
    left = max(190, word_width([name for name, _, _ in groups], size=13) + 14)
    right, top, row = 74, 6, 34
    width = max(width, left + 570)
    height = top + row * len(groups) + 26
    levels = ticks(0.0, max(values))
    scale = (width - left - right) / levels[-1] if levels[-1] > 0 else 1.0
    parts = [svg_open(width, height)]
    for level in levels:
        x = left + level * scale
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - 24}" stroke="{GRID}"/>')
        parts.append(svg_text(x, height - 8, percent_tick(level), anchor="middle"))
    for index, (name, colour, group) in enumerate(groups):
        y = top + row * index + row / 2
        parts.append(svg_text(left - 10, y + 4.5, name, anchor="end", colour=INK, size=13, weight=600))
        if not group:
            parts.append(svg_text(left + 6, y + 4, "no labels: not scored"))
            continue
        mean = sum(group) / len(group)
        parts.append(
            f'<rect x="{left}" y="{y - 8:.1f}" width="{mean * scale:.1f}" height="16" rx="3" '
            f'fill="{colour}" fill-opacity="0.22"/>'
        )
        x = left + mean * scale
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 10:.1f}" y2="{y + 10:.1f}" stroke="{colour}" '
            'stroke-width="2.5"/>'
        )
        for value in group:
            parts.append(
                f'<circle cx="{left + value * scale:.1f}" cy="{y:.1f}" r="4" fill="{colour}" '
                'fill-opacity="0.85" stroke="#fff"/>'
            )
        parts.append(
            svg_text(left + max(group) * scale + 10, y + 4, percent(mean), colour=colour, weight=600)
        )
    return "".join([*parts, "</svg>"])


def confusion_chart(
    rows: Sequence[str], columns: Sequence[str], shares: Sequence[Sequence[float | None]]
) -> str:
    """Draw shares 0..1 as shaded cells, true classes down, predictions across; None rows are empty."""
    cell, left, top = 38, max(104, word_width(rows) + 12), max(84, word_width(columns) * 3 // 4)
    width, height = left + cell * len(columns) + 44, top + cell * len(rows) + 6
    parts = [svg_open(width, height, fixed=True)]
    for j, name in enumerate(columns):
        x = left + cell * j + cell / 2
        parts.append(
            f'<text transform="translate({x + 4:.1f},{top - 8}) rotate(-42)" font-size="12" fill="{INK}">'
            f"{escape(name)}</text>"
        )
    for i, name in enumerate(rows):
        y = top + cell * i
        parts.append(svg_text(left - 8, y + cell / 2 + 4, name, anchor="end", colour=INK))
        for j, share in enumerate(shares[i]):
            fill = "#f8fafc" if share is None else _shade(share)
            frame = "#0f172a" if j < len(rows) and columns[j] == name else "none"
            parts.append(
                f'<rect x="{left + cell * j + 1}" y="{y + 1}" width="{cell - 2}" height="{cell - 2}" rx="4" '
                f'fill="{fill}" stroke="{frame}" stroke-opacity="0.45"/>'
            )
            if share is not None and share >= 0.005:
                colour = "#ffffff" if share > 0.5 else INK
                x = left + cell * j + cell / 2
                parts.append(
                    svg_text(x, y + cell / 2 + 4, f"{100 * share:.0f}", anchor="middle", colour=colour)
                )
    return "".join([*parts, "</svg>"])


def bar_chart(values: Sequence[tuple[str, str, float]], *, label: Callable[[float], str] = percent) -> str:
    """Draw named horizontal bars with their values, longest scale = largest value."""
    left = max(150, word_width([name for name, _, _ in values]) + 12)
    row, width = 24, left + 410
    top_value = max((value for _, _, value in values), default=0.0) or 1.0
    height = row * len(values) + 4
    parts = [svg_open(width, height)]
    for index, (name, colour, value) in enumerate(values):
        y = row * index + 4
        length = (width - left - 70) * value / top_value
        parts.append(svg_text(left - 8, y + 13, name, anchor="end", colour=INK))
        parts.append(
            f'<rect x="{left}" y="{y}" width="{max(length, 1):.1f}" height="17" rx="3" fill="{colour}"/>'
        )
        parts.append(svg_text(left + length + 8, y + 13, label(value)))
    return "".join([*parts, "</svg>"])


def presence_strip(states: Sequence[tuple[str, str]]) -> str:
    """Draw one small square a round; states are (``yes`` | ``no`` | ``bad``, tooltip)."""
    colours = {"yes": "#35a06a", "no": "#e5e7eb", "bad": "#d64545"}
    size = 12 if len(states) <= 30 else 6
    width = (size + 3) * len(states)
    parts = [svg_open(width, size, fixed=True)]
    for index, (state, tip) in enumerate(states):
        parts.append(
            f'<rect x="{index * (size + 3)}" y="0" width="{size}" height="{size}" rx="2.5" '
            f'fill="{colours[state]}"><title>{escape(tip)}</title></rect>'
        )
    return "".join([*parts, "</svg>"])


def svg_open(width: float, height: float, fixed: bool = False) -> str:
    """Return the opening tag; without ``fixed`` the picture shrinks with the page."""
    drawn = f'width="{width:.0f}" height="{height:.0f}"'
    size = drawn if fixed else f'class="fluid" style="max-width:{1.15 * width:.0f}px"'
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" {size} role="img">'


def svg_text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    colour: str = SOFT,
    size: int = 12,
    weight: int = 400,
) -> str:
    """Return a word at a place; ``anchor`` says which end of it stands there."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="{anchor}" xml:space="preserve">{escape(text)}</text>'
    )


def word_width(words: Sequence[str], size: int = 12) -> int:
    """Return room in pixels for the longest of some words, as wide as bold letters may be."""
    return math.ceil(0.6 * size * max(map(len, words), default=0))


def _shade(share: float) -> str:
    """White to deep blue; the root makes small confusions visible."""
    amount = math.sqrt(min(1.0, max(0.0, share)))
    white, deep = (248, 250, 252), (29, 78, 170)
    return "#{:02x}{:02x}{:02x}".format(
        *(round(a + (b - a) * amount) for a, b in zip(white, deep, strict=True))
    )
