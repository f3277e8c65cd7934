"""Renders pages: templates, figures in words, and charts drawn by matplotlib as SVG; no scripts, no other files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.optimize import isotonic_regression

from common.figures import INK, RULE, SOFT, TITLE, as_svg, fitting, new_figure, styled
from server.report.data import Curve

TEMPLATES = Path(__file__).parent / "templates"  # of this checkout, or of an unpacked app package
MISSING = "–"


def percent(value: float | None) -> str:
    """0.2345 -> 23.5 %."""
    return MISSING if value is None else f"{100 * value:.1f} %"


def short(value: float) -> str:
    """Write three significant digits, no exponent where it can be avoided."""
    return f"{value:.3g}"


def byte_text(count: float | None) -> str:
    """Return a byte count in decimal units: 815320 -> 0.82 MB, 50788016 -> 50.8 MB."""
    if count is None:
        return MISSING
    if count < 1000:
        return f"{count:.0f} B"
    if count < 1e5:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.2f} MB" if count < 1e7 else f"{count / 1e6:.1f} MB"


def mean_and_spread(values: Sequence[float]) -> str:
    """Per cent: ``23.4 ± 1.1`` (sample standard deviation), ``23.4`` for one value, a dash for none."""
    if not values:
        return MISSING
    mean = f"{100 * fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * stdev(values):.1f}"


@lru_cache(1)
def _environment() -> Environment:
    # strict: a name that is misspelt is an error, not a gap in the page
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": percent, "byte_text": byte_text, "mean": fmean, "deviation": stdev}
    return made


def render_page(template: str, **values: Any) -> str:
    """Fill a template of ``templates/``; every value is escaped but where the template says that it is markup."""
    return _environment().get_template(f"{template}.html.md").render(values)


# A curve's name, its color and its points.
Series = tuple[str, str, Curve]

# Names with colors and values.
_Groups = Sequence[tuple[str, str, Sequence[float]]]

# Sixteen that stay apart on white; more curves than that start again.
SERIES_COLOURS = (
    *("#2563eb", "#ea7317", "#15966b", "#b4315f", "#7c4fc4", "#4b7f95", "#a16207", "#475569"),
    *("#0ea5e9", "#dc2626", "#65a30d", "#db2777", "#4338ca", "#0d9488", "#c2955a", "#94a3b8"),
)
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")
_NAME = 320  # pixels: of a name beside an axis
_HEIGHT, _END = 230, 15  # pixels: of a line chart, between labels at the ends of curves


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels into low..high and ``gap`` from each other, as little as possible (least squares)."""
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(places))
    moved = np.empty(len(places))
    nearest = isotonic_regression(np.asarray(places)[order] - steps).x
    moved[order] = np.clip(nearest, low, max(low, high - gap * (len(places) - 1))) + steps
    return [float(place) for place in moved]


@styled
def line_chart(
    series: Sequence[Series], alt: str, label: Callable[[float], str] = short, from_zero: bool = False
) -> str:
    """Draw curves over rounds; each ends in a dot with its last value, its name shows on hovering."""
    figure = new_figure(520, _HEIGHT)
    ax = figure.add_subplot()
    ax.grid(axis="y")
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    if label is percent:
        ax.yaxis.set_major_formatter(_PERCENT)
    series = [one for one in series if one[2]]
    for name, color, curve in series:
        dots = "o-" if len(curve) <= 30 else "-"
        x, y = zip(*curve, strict=True)
        ax.plot(x, y, dots, color=color, lw=1.8, gid=TITLE + name, markersize=3.5, markerfacecolor="white")
        ax.plot(*curve[-1], "o", color=color, markersize=5, clip_on=False)
    if from_zero:
        ax.update_datalim([(series[0][2][0][0], 0.0)])
        ax.autoscale_view()
        if all(y >= 0 for _, _, curve in series for _, y in curve):
            ax.set_ylim(bottom=0)
    ax.set_xlabel("round")
    _label_ends(ax, series, label)
    return as_svg(figure, alt)


def _label_ends(ax: Axes, series: Sequence[Series], label: Callable[[float], str]) -> None:
    """Write last values beside the curves' ends; none where there is no room for all."""
    low, high = ax.get_ylim()
    scale = (_HEIGHT - 50) / (high - low)  # pixels of a unit; 50: the axis below
    for x in {curve[-1][0] for _, _, curve in series}:
        together = [one for one in series if one[2][-1][0] == x]
        if (len(together) - 1) * _END > _HEIGHT - 50:
            continue
        places = [curve[-1][1] * scale for _, _, curve in together]
        heights = apart(places, _END, low * scale, high * scale)
        for (_, color, curve), height in zip(together, heights, strict=True):
            offset = 8, (height - curve[-1][1] * scale) * 0.72  # points
            ax.annotate(
                label(curve[-1][1]),
                curve[-1],
                offset,
                textcoords="offset points",
                va="center_baseline",
                color=color,
                weight="bold",
            )


def _names(names: Sequence[str]) -> list[str]:
    """Return names as an axis has room for them."""
    return [fitting(name, _NAME, 13) for name in names]


def _rows(groups: Sequence[str], width: float, row: float, extra: float) -> tuple[Figure, Axes]:
    """Return a figure with a row a name, from above."""
    figure = new_figure(width, row * len(groups) + extra)
    ax = figure.add_subplot()
    ax.set_yticks(range(len(groups)), _names(groups))
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    ax.tick_params(axis="y", labelcolor=INK)
    return figure, ax


@styled
def dot_plot(groups: _Groups, alt: str) -> str:
    """Draw one row a method: a dot per seed, a bar from 0 to the mean; values are shares."""
    figure, ax = _rows([name for name, _, _ in groups], 900, 34, 40)
    ax.grid(axis="x")
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.xaxis.set_major_formatter(_PERCENT)
    for row, (_, color, values) in enumerate(groups):
        if not values:
            ax.text(0, row, " no labels: not scored", va="center", color=SOFT)
            continue
        mean = sum(values) / len(values)
        ax.barh(row, mean, 0.5, color=color, alpha=0.22)
        ax.plot([mean, mean], [row - 0.32, row + 0.32], color=color, lw=2)
        ax.plot(values, [row] * len(values), "o", color=color, markeredgecolor="white", markersize=6)
        ax.annotate(
            percent(mean), (max(values), row), (9, 0), textcoords="offset points", va="center", color=color
        )
    ax.set_xlim(left=0)
    return as_svg(figure, alt)


@styled
def bar_chart(bars: Sequence[tuple[str, str, float]], alt: str) -> str:
    """Draw named horizontal bars with their values, which are shares."""
    figure, ax = _rows([name for name, _, _ in bars], 640, 24, 8)
    drawn = ax.barh(range(len(bars)), [value for _, _, value in bars], 0.7, color=[c for _, c, _ in bars])
    ax.bar_label(drawn, [percent(value) for _, _, value in bars], padding=5, color=SOFT)
    ax.set_xlim(0, 1.1 * max((value for _, _, value in bars), default=1.0) or 1.0)
    ax.xaxis.set_visible(False)
    return as_svg(figure, alt)


@styled
def confusion_chart(
    rows: Sequence[str], columns: Sequence[str], shares: Sequence[Sequence[float]], alt: str
) -> str:
    """Draw shares 0..1 as shaded cells with per cent, true classes down, predictions across; right ones framed."""
    longest = max(map(len, _names([*rows, *columns])))
    figure = new_figure(38 * len(columns) + 8 * longest + 20, 38 * len(rows) + 6 * longest + 20)
    ax = figure.add_subplot()
    # the root makes small confusions visible
    ax.imshow(np.sqrt(np.asarray(shares, dtype=float)), cmap="Blues", vmin=0, vmax=1.15)
    ax.set_xticks(range(len(columns)), _names(columns), rotation=42, ha="left", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), _names(rows))
    ax.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=2)
    ax.tick_params(which="both", length=0, labeltop=True, labelbottom=False, labelcolor=INK)
    ax.spines[:].set_visible(False)
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            if share >= 0.005:
                ax.text(
                    j, i, f"{100 * share:.0f}", ha="center", va="center", color="w" if share > 0.4 else INK
                )
        right = list(columns).index(rows[i])
        ax.add_patch(Rectangle((right - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor=SOFT, lw=1.2))
    return as_svg(figure, alt)


@styled
def frequency_chart(
    shares: Mapping[str, float], curves: Sequence[tuple[str, str, Mapping[str, float]]], alt: str
) -> str:
    """Draw IoU (0 to 1) over the share of pixels (logarithmic): a dot a class and recipe, joined by recipe.

    Class and value of a dot show on hovering.
    """
    figure = new_figure(1060, 430)
    ax = figure.add_subplot(xscale="log", xlabel="share of pixels")
    ordered = sorted(shares, key=lambda name: (shares[name], name))
    low, high = shares[ordered[0]] / 1.3, shares[ordered[-1]] * 1.3  # room beside the outermost classes
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(_PERCENT)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(_PERCENT)
    ax.grid()
    ax.tick_params(which="both", length=0)
    ax.spines[["left", "bottom"]].set_visible(False)
    for name, color, values in curves:
        known = [one for one in ordered if one in values]
        ax.plot(
            [shares[one] for one in known], [values[one] for one in known], color=color, lw=1.2, alpha=0.55
        )
        for one in known:
            gid = f"{TITLE}{name}: {one} {percent(values[one])}"
            ax.plot(
                shares[one], values[one], "o", color=color, markeredgecolor="white", markersize=7, gid=gid
            )
    ax.set_ylim(bottom=0)
    places = [math.log(shares[name] / low) / math.log(high / low) for name in ordered]  # of the axis
    for name, place, slot in zip(ordered, places, apart(places, 17 / 980, 0.0, 1.0), strict=True):
        ax.axvline(shares[name], color=RULE, ls=(0, (2, 4)), lw=1)
        ax.annotate(
            _names([name])[0],
            (place, -0.065),
            (slot, -0.11),
            xycoords="axes fraction",
            rotation=42,
            ha="right",
            va="top",
            rotation_mode="anchor",
            arrowprops={
                "arrowstyle": "-",
                "color": SOFT,
                "lw": 0.6,
                "relpos": (1, 1),
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )
    ax.xaxis.labelpad = 62
    return as_svg(figure, alt)
