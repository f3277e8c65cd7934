"""What do source images look like in the style of each site?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from common.data.manifest import natural_key
from common.evaluation.overlay import font
from common.settings.network import Style
from common.styles.bank import StyleBank
from common.styles.style import apply_style
from common.system.atomic import atomic_path

Bytes = npt.NDArray[np.uint8]

_WIDTH = 1640
_WIDEST = 380
_GAP = 12
_TOP = 54
_LINE = 20
_BETWEEN = 24
_INK, _SOFT, _RULE, _PAPER = (31, 41, 55), (105, 112, 122), (209, 213, 219), (255, 255, 255)
_SMALLEST = 11
"""Size of type that can still be read."""
_ABREAST = 8
"""Sites beside one another; more stand in bands below."""
_ON_A_SHEET = 32
"""Sites of a file; with more of them it would have to be scrolled for minutes."""


def style_sheet(
    images: Mapping[str, Bytes],
    bank: StyleBank,
    settings: Style,
    *,
    sites: Sequence[str] | None = None,
    notes: Mapping[str, str] | None = None,
    caption: str = "",
) -> Image.Image:
    """Draw one row an image: as it is | in the style of one site after the other; many sites in several bands.

    Each band starts with the images as they are. A transfer that mixes is shown at its largest share,
    ``style.mix``, so that columns can be compared.

    Args:
        images: source images by name, uint8 [H, W, 3], of any size.
        bank: the styles; `UserError` where it was not made for ``settings``.
        settings: section ``style``.
        sites: columns, in this order; by default all of the bank by name, site-10 after site-9.
        notes: a few words under a site's name, for example its cluster.
        caption: words to go on with below the picture, after those on the styles.
    """
    wanted = _checked(images, bank, settings, sites)
    bands = _parts(wanted, _ABREAST)
    cell = min(_WIDEST, (_WIDTH - _GAP) // (len(bands[0]) + 1) - _GAP)
    says = bank.describe() + (f"; mixed in at {settings.mix:g}" if bank.kind == "spectra" else "")
    drawn = [_band(images, bank, settings, band, notes or {}, cell) for band in bands]
    return _stacked(drawn, f"{says}; {caption}" if caption else says)


def write_style_picture(
    path: str | Path,
    images: Mapping[str, Bytes],
    bank: StyleBank,
    settings: Style,
    *,
    sites: Sequence[str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write the `style_sheet` as a PNG in one step and return its path.

    Very many sites make several sheets, of which ``path`` is the first and names the rest (``styles-2.png``, ...).
    """
    first = Path(path)
    parts = _parts(_checked(images, bank, settings, sites), _ON_A_SHEET)
    files = [first, *(first.with_stem(f"{first.stem}-{n}") for n in range(2, len(parts) + 1))]
    total = sum(map(len, parts))
    for part, file in zip(parts, files, strict=True):
        others = [other.name for other in files if other != file]
        named = others[0] + (f" to {others[-1]}" if len(others) > 1 else "") if others else ""
        more = f"{len(part)} of {total} sites, the others are in {named}" if others else ""
        sheet = style_sheet(images, bank, settings, sites=part, notes=notes, caption=more)
        with atomic_path(file) as temporary:
            sheet.save(temporary, format="PNG", compress_level=4)
    return first


def _checked(
    images: Mapping[str, Bytes], bank: StyleBank, settings: Style, sites: Sequence[str] | None
) -> list[str]:
    """Return the sites to draw; raises ValueError for ones that the bank lacks, and where there is nothing to draw."""
    bank.check(settings)
    wanted = sorted(bank.styles, key=natural_key) if sites is None else list(sites)
    unknown = [site for site in wanted if site not in bank.styles]
    if not images or not wanted or unknown:
        raise ValueError(
            f"{len(images)} images in the styles of {wanted} were asked for; expected at least one image and "
            f"sites of the bank ({', '.join(sorted(bank.styles))})."
        )
    return wanted


def _parts(sites: Sequence[str], most: int) -> list[list[str]]:
    """Cut a list into as few parts of at most ``most`` as there can be, all but the last one of the same length."""
    count = math.ceil(len(sites) / most)
    length = math.ceil(len(sites) / count)
    return [list(sites[start : start + length]) for start in range(0, len(sites), length)]


def _band(
    images: Mapping[str, Bytes],
    bank: StyleBank,
    settings: Style,
    sites: Sequence[str],
    notes: Mapping[str, str],
    cell: int,
) -> Image.Image:
    """Draw names above columns of ``cell`` pixels, and below them the rows, each over its image's name."""
    heads = [("source", "as it is"), *((site, notes.get(site, "")) for site in sites)]
    rows = []
    for name, image in images.items():
        styled = [apply_style(image, bank.styles[site], settings) for site in sites]
        rows.append((name, [_cell(picture, cell) for picture in (image, *styled)]))
    heights = [max(picture.height for picture in pictures) for _, pictures in rows]
    width = _GAP + len(heads) * (cell + _GAP)
    band = Image.new("RGB", (width, _TOP + sum(heights) + len(rows) * (_LINE + _GAP)), _PAPER)
    draw = ImageDraw.Draw(band)
    for column, (head, note) in enumerate(heads):
        left = _GAP + column * (cell + _GAP)
        _write(draw, (left, 9), head, 17, cell, _INK)
        _write(draw, (left, 31), note, 13, cell, _SOFT)
    y = _TOP
    for (name, pictures), height in zip(rows, heights, strict=True):
        for column, picture in enumerate(pictures):
            band.paste(picture, (_GAP + column * (cell + _GAP), y))
        _write(draw, (_GAP, y + height + 3), name, 13, width - 2 * _GAP, _SOFT)
        y += height + _LINE + _GAP
    return band


def _stacked(bands: Sequence[Image.Image], caption: str) -> Image.Image:
    """Lay bands below one another, a line between them, and the caption below all."""
    width = max(band.width for band in bands)
    height = sum(band.height for band in bands) + (len(bands) - 1) * _BETWEEN + 2 * _LINE
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = 0
    for index, band in enumerate(bands):
        if index:
            draw.line((_GAP, y + _BETWEEN // 2, width - _GAP, y + _BETWEEN // 2), _RULE)
            y += _BETWEEN
        sheet.paste(band, (0, y))
        y += band.height
    _write(draw, (_GAP, y), caption, 13, width - 2 * _GAP, _SOFT)
    return sheet


def _cell(picture: Bytes, width: int) -> Image.Image:
    """Bring a picture to the width of a column."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    width: int,
    ink: tuple[int, int, int],
) -> None:
    words, typeface = _fit(text, size, width)
    draw.text(place, words, ink, typeface)


def _fit(text: str, size: int, width: int) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """Return words and type of at most ``width`` pixels: smaller where need be, then without their middle.

    Names of sites are told apart by their ends.
    """
    for smaller in range(size, _SMALLEST - 1, -1):
        if font(smaller).getlength(text) <= width:
            return text, font(smaller)
    typeface = font(min(size, _SMALLEST))
    kept = len(text) - 1
    while kept > 0 and typeface.getlength(_without_middle(text, kept)) > width:
        kept -= 1
    return _without_middle(text, kept), typeface


def _without_middle(text: str, kept: int) -> str:
    """Return so many letters of a text, from both of its ends."""
    tail = kept // 2
    return text[: kept - tail] + "…" + (text[-tail:] if tail else "")
