"""Sheets of source images in the style of each site."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from common.data.images import Bytes
from common.figures import image_grid, stacked
from common.order import natural_key
from common.settings.network import Style
from common.styles.bank import StyleBank
from common.styles.style import apply_style
from common.system.atomic import atomic_path

# Bytes of a sheet, and at most of a column.
_WIDTH, _WIDEST = 1640, 380

# Sites beside one another; more stand in bands below.
_ABREAST = 8

# Sites of a file; with more of them it would have to be scrolled for minutes.
_ON_A_SHEET = 32


def style_sheet(
    images: Mapping[str, Bytes],
    bank: StyleBank,
    settings: Style,
    *,
    sites: Sequence[str] | None = None,
    caption: str = "",
) -> Bytes:
    """Draw one row an image: as it is | in the style of one site after the other; many sites in several bands.

    Each band starts with the images as they are. A transfer that mixes is shown at its largest share,
    ``style.mix``, so that columns can be compared.

    Args:
        images: source images by name, uint8 [H, W, 3], of any size.
        bank: the styles; `UserError` where it was not made for ``settings``.
        settings: section ``style``.
        sites: columns, in this order; by default all of the bank by name, site-10 after site-9.
        caption: words to go on with below the sheet, after those on the styles.
    """
    bands = _parts(_checked(images, bank, settings, sites), _ABREAST)
    cell = min(_WIDEST, _WIDTH // (len(bands[0]) + 1) - 14)  # 12 pixels between columns and at both ends
    says = bank.describe() + (f"; mixed in at {settings.mix:g}" if bank.kind == "spectra" else "")
    says = f"{says}; {caption}" if caption else says
    drawn = []
    for band in bands:
        rows = [
            [image, *(apply_style(image, bank.styles[site], settings) for site in band)]
            for image in images.values()
        ]
        noted = ["as it is", *("" for _ in band)]
        last = says if band is bands[-1] else ""
        drawn.append(
            image_grid(rows, ["source", *band], cell, notes=noted, names=tuple(images), caption=last)
        )
    return stacked(drawn)


def write_style_picture(
    path: str | Path,
    images: Mapping[str, Bytes],
    bank: StyleBank,
    settings: Style,
) -> Path:
    """Write the `style_sheet` as a PNG in one step and return its path.

    Very many sites make several sheets, of which ``path`` is the first and names the rest (``styles-2.png``, ...).
    """
    first = Path(path)
    parts = _parts(_checked(images, bank, settings, None), _ON_A_SHEET)
    files = [first, *(first.with_stem(f"{first.stem}-{n}") for n in range(2, len(parts) + 1))]
    total = sum(map(len, parts))
    for part, file in zip(parts, files, strict=True):
        others = [other.name for other in files if other != file]
        named = others[0] + (f" to {others[-1]}" if len(others) > 1 else "") if others else ""
        more = f"{len(part)} of {total} sites, the others are in {named}" if others else ""
        sheet = style_sheet(images, bank, settings, sites=part, caption=more)
        with atomic_path(file) as temporary:
            Image.fromarray(sheet).save(temporary, format="PNG", compress_level=4)
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
            f"sites of the bank ({', '.join(sorted(bank.styles, key=natural_key))})."
        )
    return wanted


def _parts(sites: Sequence[str], most: int) -> list[list[str]]:
    """Cut a list into as few parts of at most ``most`` as there can be, all but the last one of the same length."""
    count = math.ceil(len(sites) / most)
    length = math.ceil(len(sites) / count)
    return [list(sites[start : start + length]) for start in range(0, len(sites), length)]
