"""What do source images look like in the style of each site?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from common.atomic import atomic_path
from common.config_network import Style
from common.overlay import font
from common.style import apply_style
from common.style_bank import StyleBank

Bytes = npt.NDArray[np.uint8]

_WIDTH = 1640
_WIDEST = 380
_GAP = 12
_TOP = 54
_INK, _SOFT, _PAPER = (31, 41, 55), (105, 112, 122), (255, 255, 255)
_MOST = 8


def style_sheet(
    images: Mapping[str, Bytes],
    bank: StyleBank,
    settings: Style,
    *,
    sites: Sequence[str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Image.Image:
    """Draw one row an image: as it is | in the style of one site after the other.

    A transfer that mixes is shown at its largest share, ``style.mix``, so that columns can be compared.

    Args:
        images: source images by name, uint8 [H, W, 3], of any size.
        bank: the styles; `UserError` where it was not made for ``settings``.
        settings: section ``style``.
        sites: columns, in this order; by default the first ones of the bank by name, and the page says
            so if there are more.
        notes: a few words under a site's name, for example its cluster.
    """
    bank.check(settings)
    wanted = sorted(bank.styles) if sites is None else list(sites)
    unknown = [site for site in wanted if site not in bank.styles]
    if not images or not wanted or unknown:
        raise ValueError(
            f"{len(images)} images in the styles of {wanted} were asked for; expected at least one image and "
            f"sites of the bank ({', '.join(sorted(bank.styles))})."
        )
    shown = wanted[:_MOST]
    cell = min(_WIDEST, (_WIDTH - _GAP) // (len(shown) + 1) - _GAP)
    heads = [("source", "as it is"), *((site, (notes or {}).get(site, "")) for site in shown)]
    rows = []
    for name, image in images.items():
        styled = [apply_style(image, bank.styles[site], settings) for site in shown]
        rows.append((name, [_cell(picture, cell) for picture in (image, *styled)]))
    caption = bank.describe() + (f"; mixed in at {settings.mix:g}" if bank.kind == "spectra" else "")
    if len(wanted) > len(shown):
        caption += f"; {len(shown)} of {len(wanted)} sites"
    return _lay_out(heads, rows, cell, caption)


def write_style_picture(
    path: str | Path,
    images: Mapping[str, Bytes],
    bank: StyleBank,
    settings: Style,
    *,
    sites: Sequence[str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write the `style_sheet` as a PNG in one step and return its path."""
    sheet = style_sheet(images, bank, settings, sites=sites, notes=notes)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG", compress_level=4)
    return Path(path)


def _cell(picture: Bytes, width: int) -> Image.Image:
    """Bring a picture to the width of a column."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)


def _fit(text: str, size: int, width: int) -> str:
    """Return ``text``, cut and ended by an ellipsis where it is wider than ``width`` pixels."""
    typeface = font(size)
    if typeface.getlength(text) <= width:
        return text
    while text and typeface.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _lay_out(
    heads: Sequence[tuple[str, str]],
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    cell: int,
    caption: str,
) -> Image.Image:
    line = 20
    width = _GAP + len(heads) * (cell + _GAP)
    heights = [max(picture.height for picture in pictures) for _, pictures in rows]
    height = _TOP + sum(heights) + len(rows) * (line + _GAP) + 2 * line
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, (head, note) in enumerate(heads):
        left = _GAP + column * (cell + _GAP)
        draw.text((left, 9), _fit(head, 17, cell), _INK, font(17))
        draw.text((left, 31), _fit(note, 13, cell), _SOFT, font(13))
    y = _TOP
    for (name, pictures), row_height in zip(rows, heights, strict=True):
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (_GAP + column * (cell + _GAP), y))
        draw.text((_GAP, y + row_height + 3), _fit(name, 13, width - 2 * _GAP), _SOFT, font(13))
        y += row_height + line + _GAP
    draw.text((_GAP, y), _fit(caption, 13, width - 2 * _GAP), _SOFT, font(13))
    return sheet
