"""Does the picture show each image in each site's style, at its place?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.config_network import Style
from common.errors import UserError
from common.style import extract_style
from common.style_bank import StyleBank
from server.style_picture import style_sheet, write_style_picture

SETTINGS = Style(transfer="fourier", side=1, height=16, width=24)


def flat(level: int, size: tuple[int, int] = (16, 24)) -> np.ndarray:
    return np.full((*size, 3), level, dtype=np.uint8)


def bank(**levels: int) -> StyleBank:
    return StyleBank.of(SETTINGS, {site: extract_style(flat(v), SETTINGS) for site, v in levels.items()})


def boxes(sheet: Image.Image) -> list[tuple[int, int, int]]:
    """Return (row, column, level) of each large grey patch, found from the pixels alone."""
    pixels = np.asarray(sheet)
    grey = np.where((pixels == pixels[..., :1]).all(axis=2), pixels[..., 0], 255)
    found = {}
    for level in np.flatnonzero(np.bincount(grey.ravel())[:255] > 5000):
        ys, xs = np.nonzero(grey == level)
        found[(int(ys.min()), int(xs.min()))] = int(level)
    tops = sorted({y for y, _ in found})
    lefts = sorted({x for _, x in found})
    return sorted((tops.index(y), lefts.index(x), level) for (y, x), level in found.items())


def test_rows_are_images_and_columns_original_and_sites() -> None:
    sheet = style_sheet({"one": flat(90)}, bank(dusk=40, noon=200), SETTINGS)
    assert boxes(sheet) == [(0, 0, 90), (0, 1, 40), (0, 2, 200)]
    turned = style_sheet({"one": flat(90)}, bank(dusk=40, noon=200), SETTINGS, sites=["noon", "dusk"])
    assert boxes(turned) == [(0, 0, 90), (0, 1, 200), (0, 2, 40)]


def test_images_of_different_sizes_lie_below_one_another() -> None:
    sheet = style_sheet({"one": flat(90), "two": flat(140, (40, 30))}, bank(dusk=40), SETTINGS)
    levels = {(row, column): level for row, column, level in boxes(sheet)}
    assert levels[0, 0] == 90
    assert levels[1, 0] == 140
    assert levels[0, 1] == 40  # the dusk patches of both rows count as one


def test_many_sites_are_cut_to_what_fits() -> None:
    many = bank(**{f"site-{i:02}": 20 + 5 * i for i in range(30)})
    sheet = style_sheet({"one": flat(90)}, many, SETTINGS, notes={"site-00": "cluster 1"})
    assert sheet.width <= 1640
    assert max(column for _, column, _ in boxes(sheet)) == 8


def test_names_and_notes_are_written() -> None:
    images = {"one": flat(90)}
    plain = np.asarray(style_sheet(images, bank(dusk=40), SETTINGS))
    noted = np.asarray(style_sheet(images, bank(dusk=40), SETTINGS, notes={"dusk": "cluster 1"}))
    renamed = np.asarray(style_sheet(images, bank(noon=40), SETTINGS))
    assert not np.array_equal(plain[28:50], noted[28:50])
    assert np.array_equal(plain[:28], noted[:28])
    assert not np.array_equal(plain[:28], renamed[:28])


def test_the_picture_is_written(tmp_path: Path) -> None:
    path = write_style_picture(tmp_path / "pictures" / "styles.png", {"a": flat(9)}, bank(x=40), SETTINGS)
    with Image.open(path) as opened:
        assert opened.format == "PNG"


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        style_sheet({}, bank(dusk=40), SETTINGS)
    with pytest.raises(ValueError, match="sites of the bank"):
        style_sheet({"one": flat(90)}, bank(dusk=40), SETTINGS, sites=["rain"])
    with pytest.raises(UserError, match="style bank holds"):
        style_sheet({"one": flat(90)}, bank(dusk=40), SETTINGS.model_copy(update={"height": 32}))
