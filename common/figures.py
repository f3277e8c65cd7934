"""Figures by matplotlib, without a screen: as SVG for a page, as pixels for a PNG file.

Imported where something is drawn, not when a command starts: matplotlib takes most of a second.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from common.data.images import Bytes

# Names with their colors, "#rrggbb".
Colored = tuple[tuple[str, str], ...]

DPI = 100  # sizes are given in pixels, matplotlib counts in inches
INK, SOFT, RULE = "#1f2937", "#6b7280", "#e5e7eb"
# An artist whose gid starts so carries the rest as words that show on hovering.
TITLE = "title "

# The look of all figures; decorates what makes one and what draws one.
styled = rc_context(
    {
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
        "font.size": 9,
        "text.parse_math": False,  # a dollar in a site's name is a dollar
        "text.color": INK,
        "axes.edgecolor": RULE,
        "axes.labelcolor": SOFT,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": RULE,
        "xtick.color": RULE,
        "ytick.color": RULE,
        "xtick.labelcolor": SOFT,
        "ytick.labelcolor": SOFT,
        "svg.fonttype": "none",  # letters stay letters, in the font of the page
        "svg.hashsalt": "siteseg",  # the same figure is the same text
    }
)

_SVG = "http://www.w3.org/2000/svg"
# control characters and halves of pairs, which may come with a site's name and which no XML may hold
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
# pixels between images and of a line of text; width of a letter, of its size.
_GAP, _LINE, _LETTER = 12, 20, 0.62


def new_figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """Return an empty figure of this size in pixels."""
    return Figure(figsize=(width / DPI, height / DPI), dpi=DPI, layout=layout)  # type: ignore[arg-type]


def points(pixels: float) -> float:
    """Convert pixels to the unit of font sizes."""
    return pixels * 72 / DPI


@styled
def as_svg(figure: Figure, alt: str) -> str:
    """Return an ``<svg>`` element that shrinks with its page and says what it shows to who cannot see it."""
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the page's fonts draw what ours lacks
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(_NOT_XML.sub("", file.getvalue()))
    for element in list(root.iter()):
        for child in list(element):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                element.remove(child)
        name = element.get("id", "")
        if name.startswith(TITLE):
            title = ElementTree.Element(f"{{{_SVG}}}title")
            title.text = name.removeprefix(TITLE)
            element.insert(0, title)
        if name.startswith(TITLE) or "_" in name:  # nothing refers to those, and a page holds many figures
            del element.attrib["id"]
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    width = round(figure.get_figwidth() * DPI)
    root.attrib |= {"role": "img", "aria-label": alt, "class": "fluid", "style": f"max-width:{width}px"}
    return ElementTree.tostring(root, encoding="unicode")


@styled
def as_pixels(figure: Figure) -> Bytes:
    """Return the figure as uint8 [H, W, 3]."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # drawn as a box
        figure.savefig(file, format="rgba", dpi=DPI)
    width, height = figure.canvas.get_width_height()
    return np.frombuffer(file.getvalue(), np.uint8).reshape(height, width, 4)[..., :3]


def fitting(text: str, width: float, size: float) -> str:
    """Return at most as many letters as fit ``width`` pixels, without the middle: names differ at their ends."""
    most = max(3, int(width / (_LETTER * size)))
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"


def legend_layout(entries: Colored, width: float, size: float) -> tuple[int, int]:
    """Return the columns of a legend that fit ``width`` pixels, and its height in pixels."""
    if not entries:
        return 1, 0
    column = size * (2.6 + _LETTER * max(len(name) for name, _ in entries))
    columns = max(1, min(len(entries), int(width / column)))
    return columns, math.ceil(math.ceil(len(entries) / columns) * 1.7 * size + size)


def add_legend(figure: Figure, entries: Colored, columns: int, size: float = 14) -> None:
    """Put patches with names at the bottom of a figure."""
    if not entries:
        return
    figure.legend(
        handles=[Patch(facecolor=color, edgecolor="#949ba7", label=name) for name, color in entries],
        labels=[name for name, _ in entries],
        loc="lower left",
        bbox_to_anchor=(0, 0),
        ncols=columns,
        frameon=False,
        fontsize=points(size),
        handlelength=1,
        handleheight=1,
        handletextpad=0.5,
        columnspacing=1,
        borderpad=0,
        borderaxespad=0.6,
    )


@lru_cache(64)  # of a folder of images that are segmented, many have the same one
@styled
def legend_image(entries: Colored, width: int, size: int) -> Bytes:
    """Draw a legend in as many rows as ``width`` pixels need: uint8 [h, width, 3]; no entries: h = 0."""
    columns, height = legend_layout(entries, width, size)
    if not height:
        return np.zeros((0, width, 3), np.uint8)
    figure = new_figure(width, height, layout=None)
    add_legend(figure, entries, columns, size)
    return as_pixels(figure)


@styled
def image_grid(
    rows: Sequence[Sequence[Bytes]],
    heads: Sequence[str],
    cell: int,
    *,
    notes: Sequence[str] = (),
    names: Sequence[str] = (),
    legend: Colored = (),
    caption: str = "",
) -> Bytes:
    """Lay images in rows below headed columns of ``cell`` pixels: uint8 [H, W, 3].

    Args:
        rows: RGB, uint8 [h, w, 3], of any size; a row may be shorter than ``heads``.
        heads: one a column.
        cell: width of a column in pixels.
        notes: a few words below each head.
        names: one a row, below its images.
        legend: colors below all.
        caption: words below all.
    """
    heights = [max(round(cell * image.shape[0] / image.shape[1]) for image in row) for row in rows]
    width = _GAP + len(heads) * (cell + _GAP)
    columns, bottom = legend_layout(legend, width, 14)
    top, below = 34 + (_LINE if any(notes) else 0), _GAP + (_LINE if names else 0)
    bottom += below + (_LINE if caption else 0)
    height = top + sum(heights) + (len(rows) - 1) * below + bottom
    figure = new_figure(width, height, layout=None)
    axes = figure.subplots(
        len(rows),
        len(heads),
        squeeze=False,
        gridspec_kw={
            "left": _GAP / width,
            "right": 1 - _GAP / width,
            "top": 1 - top / height,
            "bottom": bottom / height,
            "wspace": _GAP / cell,
            "hspace": below * len(rows) / sum(heights),
            "height_ratios": heights,
        },
    )
    for i, row in enumerate(rows):
        for j, ax in enumerate(axes[i]):
            ax.set_axis_off()
            ax.set_anchor("N")
            if j < len(row):
                ax.imshow(row[j])
    for j, head in enumerate(heads):
        x = (_GAP + j * (cell + _GAP)) / width
        figure.text(x, 1 - 24 / height, fitting(head, cell, 15), fontsize=points(15))
        if any(notes):
            figure.text(x, 1 - 44 / height, fitting(notes[j], cell, 13), fontsize=points(13), color=SOFT)
    for i, name in enumerate(names):
        y = axes[i, 0].get_position(original=True).y0 - 16 / height
        figure.text(_GAP / width, y, fitting(name, width - 2 * _GAP, 13), fontsize=points(13), color=SOFT)
    if caption:
        words = fitting(caption, width - 2 * _GAP, 13)
        figure.text(_GAP / width, 8 / height, words, fontsize=points(13), color=SOFT)
    add_legend(figure, legend, columns)
    return as_pixels(figure)


def stacked(images: Sequence[Bytes]) -> Bytes:
    """Lay images below one another on white paper, from the left."""
    width = max(image.shape[1] for image in images)
    return np.concatenate(
        [
            np.pad(image, ((0, 0), (0, width - image.shape[1]), (0, 0)), constant_values=255)
            for image in images
        ]
    )
