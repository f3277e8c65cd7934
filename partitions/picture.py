"""What does a split look like? One picture that shows sizes, images and class mix of every site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from common.data.classes import Colour, distinct_colours
from common.data.images import read_image

WIDTH = 1480
_MARGIN, _TEXT, _BAR, _THUMBS, _ROW, _GAP = 28, 240, 340, 6, 92, 10
_INK, _SOFT, _LINE, _PAPER = (25, 30, 38), (105, 112, 122), (222, 226, 231), (255, 255, 255)
_MOST_ROWS = 24


@dataclass(frozen=True)
class Row:
    """One site or evaluation split: ``share`` [C] sums to 1 (class or domain mix), or None."""

    name: str
    images: int
    note: str
    pictures: Sequence[Path]
    share: npt.NDArray[np.float64] | None


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fit(draw: ImageDraw.ImageDraw, text: str, size: int, width: float) -> str:
    """Return ``text``, shortened with an ellipsis where it is wider than ``width`` pixels."""
    if draw.textlength(text, _font(size)) <= width:
        return text
    while text and draw.textlength(text + "…", _font(size)) > width:
        text = text[:-1]
    return text.rstrip(" ,") + "…"


def _wrap(draw: ImageDraw.ImageDraw, text: str, size: int, width: float, lines: int) -> list[str]:
    """Break ``text`` at blanks, but not at no-break ones, into at most ``lines`` lines."""
    result: list[str] = []
    rest = text.split(" ")
    while rest and len(result) < lines:
        taken = 1
        while taken < len(rest) and draw.textlength(" ".join(rest[: taken + 1]), _font(size)) <= width:
            taken += 1
        if len(result) == lines - 1:
            taken = len(rest)
        line = " ".join(rest[:taken]).replace("\u00a0", " ")  # the font has no glyph for it
        result.append(_fit(draw, line, size, width))
        rest = rest[taken:]
    return result


def _thumbnail(path: Path, width: int, height: int) -> Image.Image:
    """Return the picture's centre, cut to the aspect of width x height."""
    picture = Image.fromarray(read_image(path))
    scale = max(width / picture.width, height / picture.height)
    size = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _spread(count: int, wanted: int) -> list[int]:
    """Return up to ``wanted`` indices spread evenly over ``count``."""
    if count <= wanted:
        return list(range(count))
    return [round((i + 0.5) * count / wanted - 0.5) for i in range(wanted)]


def _draw_row(page: Image.Image, row: Row, y: int, colours: Sequence[Colour], most: int) -> None:
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, y), _fit(draw, row.name, 18, _TEXT - 16), _INK, _font(18))
    plural = "image" if row.images == 1 else "images"
    draw.text((_MARGIN, y + 24), f"{row.images} {plural}", _INK, _font(14))
    length = max(2, round((_TEXT - 40) * row.images / most))
    draw.rectangle((_MARGIN, y + 44, _MARGIN + length, y + 49), fill=(60, 110, 180))
    for i, line in enumerate(_wrap(draw, row.note, 13, _TEXT - 16, 2)):
        draw.text((_MARGIN, y + 55 + 17 * i), line, _SOFT, _font(13))

    left = _MARGIN + _TEXT
    right = WIDTH - _MARGIN - _BAR - 24
    width = (right - left - 6 * (_THUMBS - 1)) // _THUMBS
    for slot, index in enumerate(_spread(len(row.pictures), _THUMBS)):
        page.paste(_thumbnail(row.pictures[index], width, _ROW), (left + slot * (width + 6), y))

    left = WIDTH - _MARGIN - _BAR
    if row.share is None:
        draw.text((left, y + 36), "no labels to count, one domain", _SOFT, _font(13))
        return
    ends = np.concatenate([[0.0], np.cumsum(row.share)]) * _BAR
    for i, share in enumerate(row.share):
        x0, x1 = left + ends[i], left + ends[i + 1]
        if round(x1) > round(x0):
            draw.rectangle((round(x0), y + 14, round(x1) - 1, y + _ROW - 14), fill=colours[i])
        text = f"{100 * share:.0f}"
        if x1 - x0 > draw.textlength(text, _font(12)) + 6:
            dark = sum(np.multiply(colours[i], (0.3, 0.59, 0.11))) < 140
            ink = (255, 255, 255) if dark else _INK
            draw.text(((x0 + x1) / 2, y + _ROW / 2), text, ink, _font(12), anchor="mm")


def _legend(draw: ImageDraw.ImageDraw, names: Sequence[str], colours: Sequence[Colour], y: int) -> int:
    """Draw colour keys from ``y`` downwards and return where they end."""
    x = _MARGIN
    for name, colour in zip(names, colours, strict=True):
        wide = 24 + draw.textlength(name, _font(14)) + 22
        if x + wide > WIDTH - _MARGIN:
            x, y = _MARGIN, y + 26
        draw.rectangle((x, y + 2, x + 15, y + 17), fill=colour, outline=_SOFT)
        draw.text((x + 23, y + 1), name, _INK, _font(14))
        x += round(wide)
    return y + 26


def draw_split(
    title: str,
    subtitle: str,
    sites: Sequence[Row],
    evaluation: Sequence[Row],
    names: Sequence[str],
    colours: Sequence[Colour] | None,
    mix: str,
) -> Image.Image:
    """Draw a page: one row per site, then the evaluation splits, then the legend.

    ``names`` and ``colours`` explain the bars, whose content ``mix`` names ("classes, % of labelled
    pixels"). Of many sites the first ones are shown, and the page says so.
    """
    colours = distinct_colours(len(names)) if colours is None else colours
    shown = list(sites[:_MOST_ROWS])
    hidden = len(sites) - len(shown)
    rows = len(shown) + len(evaluation)
    per_line = max(1, (WIDTH - 2 * _MARGIN) // 90)
    height = 150 + rows * (_ROW + _GAP) + 60 + 26 * (len(names) // per_line * 2 + 3)
    page = Image.new("RGB", (WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, 22), _fit(draw, title, 27, WIDTH - 2 * _MARGIN), _INK, _font(27))
    draw.text((_MARGIN, 60), _fit(draw, subtitle, 15, WIDTH - 2 * _MARGIN), _SOFT, _font(15))
    for x, text in (
        (_MARGIN, "site"),
        (_MARGIN + _TEXT, "images, evenly spaced"),
        (WIDTH - _MARGIN - _BAR, mix),
    ):
        draw.text((x, 94), text, _SOFT, _font(13))
    y = 116
    draw.line((_MARGIN, y - 4, WIDTH - _MARGIN, y - 4), fill=_LINE, width=2)
    most = max((row.images for row in (*shown, *evaluation)), default=1)
    for row in shown:
        _draw_row(page, row, y, colours, most)
        y += _ROW + _GAP
    if hidden:
        draw.text((_MARGIN, y), f"and {hidden} more sites, see partition.json", _SOFT, _font(15))
        y += 30
    if evaluation:
        draw.line((_MARGIN, y + 1, WIDTH - _MARGIN, y + 1), fill=_LINE, width=2)
        y += 10
        for row in evaluation:
            _draw_row(page, row, y, colours, most)
            y += _ROW + _GAP
    if names:
        draw.line((_MARGIN, y + 1, WIDTH - _MARGIN, y + 1), fill=_LINE, width=2)
        y = _legend(draw, names, colours, y + 12)
    return page.crop((0, 0, WIDTH, min(y + 14, height)))
