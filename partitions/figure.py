"""The image of a split: size, sample images and class mix of every site on one page."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from PIL import Image, ImageOps

from common.data.classes import Colour, distinct_colours
from common.data.formats import AS_FOUND, Reading
from common.data.images import read_image
from common.data.manifest import Entry
from common.figures import INK, SOFT, add_legend, as_pixels, fitting, legend_layout, new_figure, styled
from partitions.plan import Split
from partitions.sources.base import all_labelled

_WIDTH = 1480  # pixels; a screen of today shows it whole
_TEXT, _THUMBS, _BAR = 240, 860, 340  # pixels of the three columns: words, sample images, mix
_SAMPLES, _GAP = 6, 6  # sample images of a row, and pixels between them
_ROW, _TOP = 104, 116  # pixels of a row, and of the title above all rows
_MOST_ROWS = 24  # of sites; more would make an image that no viewer shows well


@dataclass(frozen=True)
class SplitRow:
    """One site or evaluation split: ``share`` [C] sums to 1 (class or domain mix), or None."""

    name: str
    images: int
    note: str
    samples: Sequence[Path]
    share: npt.NDArray[np.float64] | None
    reading: Reading = AS_FOUND


def _spread(count: int, wanted: int) -> list[int]:
    """Return up to ``wanted`` indices spread evenly over ``count``."""
    if count <= wanted:
        return list(range(count))
    return [round((i + 0.5) * count / wanted - 0.5) for i in range(wanted)]  # the middles of equal parts


def _sample_strip(row: SplitRow) -> npt.NDArray[np.uint8]:
    """Return sample images side by side, each cut to the middle: uint8 [h, _THUMBS, 3]."""
    width, height = (_THUMBS - 24 - _GAP * (_SAMPLES - 1)) // _SAMPLES, _ROW - 12  # 24: before the mix
    strip = np.full((height, _THUMBS, 3), 255, np.uint8)
    for slot, index in enumerate(_spread(len(row.samples), _SAMPLES)):
        left = slot * (width + _GAP)
        image = Image.fromarray(read_image(row.samples[index], row.reading))
        fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        strip[:, left : left + width] = np.asarray(fitted)
    return strip


def _draw_words(ax: Axes, row: SplitRow, most: int) -> None:
    ax.text(0, 0.98, fitting(row.name, _TEXT - 12, 16), fontsize=12.5, va="top")
    ax.text(0, 0.72, f"{row.images} image{'' if row.images == 1 else 's'}", fontsize=10, va="top")
    ax.barh(0.48, 0.85 * row.images / most, height=0.05, color="#3c6eb4")
    note = textwrap.fill(row.note, 32, max_lines=2, placeholder="…", break_long_words=True)
    ax.text(0, 0.42, note.replace("\u00a0", " "), fontsize=9, va="top", color=SOFT, linespacing=1.3)


def _draw_mix(ax: Axes, row: SplitRow, colours: Sequence[str]) -> None:
    if row.share is None:
        ax.text(0, 0.5, "no labels to count, one domain", fontsize=9.5, va="center", color=SOFT)
        return
    left = 0.0
    for share, colour in zip(row.share, colours, strict=True):
        bars = ax.barh(0.5, share, left=left, height=0.66, color=colour)
        left += share
        if share > 0.07:  # room for two digits
            red, green, blue = bytes.fromhex(colour[1:])
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 140  # luma of ITU-R BT.601, below its middle
            ax.bar_label(bars, [f"{100 * share:.0f}"], label_type="center", color="white" if dark else INK)


@styled
def draw_split(
    title: str,
    subtitle: str,
    sites: Sequence[SplitRow],
    evaluation: Sequence[SplitRow],
    names: Sequence[str],
    colours: Sequence[Colour] | None,
    mix: str,
) -> Image.Image:
    """Draw a page: one row per site, then the evaluation splits, then the legend.

    ``names`` and ``colours`` explain the bars, whose content ``mix`` names ("classes, % of labelled
    pixels"). Of many sites the first ones are shown, and the page says so.
    """
    hexes = ["#{:02x}{:02x}{:02x}".format(*c) for c in colours or distinct_colours(len(names))]
    rows = [*sites[:_MOST_ROWS], *evaluation]
    hidden = len(sites) - len(sites[:_MOST_ROWS])
    legend = tuple(zip(names, hexes, strict=True))
    columns, bottom = legend_layout(legend, _WIDTH, 14)
    bottom += 20 + (24 if hidden else 0)
    height = _TOP + _ROW * len(rows) + bottom
    figure = new_figure(_WIDTH, height, layout=None)
    grid = figure.add_gridspec(
        len(rows),
        3,
        width_ratios=(_TEXT, _THUMBS, _BAR),
        left=28 / _WIDTH,
        right=1 - 12 / _WIDTH,
        top=1 - _TOP / height,
        bottom=bottom / height,
        wspace=0,
        hspace=0.1,
    )
    most = max((row.images for row in rows), default=1)
    for i, row in enumerate(rows):
        words, samples, bar = (figure.add_subplot(grid[i, j]) for j in range(3))
        for ax in (words, samples, bar):
            ax.set_axis_off()
        for ax in (words, bar):
            ax.set(xlim=(0, 1), ylim=(0, 1))
        _draw_words(words, row, most)
        samples.imshow(_sample_strip(row), aspect="auto")
        _draw_mix(bar, row, hexes)
        if not i:
            for ax, head in zip((words, samples, bar), ("site", "images, evenly spaced", mix), strict=True):
                figure.text(ax.get_position().x0, 1 - 104 / height, head, fontsize=9.5, color=SOFT)
    figure.text(28 / _WIDTH, 1 - 46 / height, fitting(title, _WIDTH - 56, 26), fontsize=19)
    figure.text(28 / _WIDTH, 1 - 76 / height, fitting(subtitle, _WIDTH - 56, 15), fontsize=11, color=SOFT)
    if hidden:
        more = f"and {hidden} more sites, see partition.json"
        figure.text(28 / _WIDTH, (bottom - 24) / height, more, fontsize=11, color=SOFT)
    add_legend(figure, legend, columns)
    return Image.fromarray(as_pixels(figure))


def figure_of(split: Split) -> Image.Image:
    """Draw the page of a split: shares of classes where they were counted, else of domains."""
    data, request = split.dataset, split.request
    classes = data.classes if split.counted else None
    reading = Reading.of(data.settings, data.name)
    domains = list(dict.fromkeys(entry.domain for entry in data.images if entry.domain is not None))

    def row(label: str, name: str, entries: Sequence[Entry]) -> SplitRow:
        found = Counter(entry.domain for entry in entries if entry.domain is not None)
        note = ", ".join(f"{d}\u00a0{n}" if len(found) > 1 else d for d, n in found.most_common())
        counts = None
        if classes is not None:
            counts = split.histograms.get(name)
        elif len(domains) > 1:
            counts = np.asarray([found[domain] for domain in domains])
        share = None if counts is None or not counts.any() else counts / counts.sum()
        paths = [data.root / entry.image for entry in entries]
        return SplitRow(label, len(entries), note, paths, share, reading)

    over = f", alpha {request.alpha:g} over {request.over}" if request.rule == "dirichlet" else ""
    labels = "labels stand in the site manifests" if split.keeps_labels else "site manifests without labels"
    if not all_labelled(data.images):
        labels = "no labels"
    views = f", {len(data.views)} crops of each" if data.views else ""
    return draw_split(
        title=f"{data.name}: {len(split.sites)} sites by {request.rule}{over}",
        subtitle=f"{len(data.images)} images{views}, seed {request.seed}; {labels}",
        sites=[row(name, name, images) for name, images in split.sites.items()],
        evaluation=[row(f"{name} (evaluation)", name, entries) for name, entries in data.evaluation.items()],
        names=classes.names if classes is not None else domains if len(domains) > 1 else (),
        colours=classes.colours if classes is not None else None,
        mix="classes, % of labelled pixels" if classes is not None else "domains, % of images",
    )
