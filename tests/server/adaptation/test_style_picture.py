"""Style sheets show each image in each site's style, at its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from common.settings.network import Style
from common.styles.bank import StyleBank
from common.styles.style import extract_style
from server.adaptation.style_picture import style_sheet, write_style_picture

SETTINGS = Style(transfer="fourier", side=1, height=16, width=24)


def flat(level: int, size: tuple[int, int] = (16, 24)) -> np.ndarray:
    return np.full((*size, 3), level, dtype=np.uint8)


def bank(**levels: int) -> StyleBank:
    return StyleBank.of(SETTINGS, {site: extract_style(flat(v), SETTINGS) for site, v in levels.items()})


def boxes(pixels: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (row, column, level) of each large grey patch, found from the pixels alone."""
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


def levels_of(count: int) -> dict[str, int]:
    """Sites with a grey of their own each, apart from the source's 90 and the paper's 255."""
    return {f"site-{i}": 20 + 2 * i + (2 if 20 + 2 * i >= 90 else 0) for i in range(count)}


@pytest.mark.parametrize(
    ("sites", "abreast"), [(8, [8]), (9, [5, 4]), (24, [8, 8, 8]), (30, [8, 8, 8, 6]), (32, [8, 8, 8, 8])]
)
def test_all_of_many_sites_are_drawn_in_bands(sites: int, abreast: list[int]) -> None:
    levels = levels_of(sites)
    sheet = style_sheet({"one": flat(90)}, bank(**levels), SETTINGS)
    assert sheet.shape[1] <= 1640
    shades = list(levels.values())
    expected = []
    for band, count in enumerate(abreast):
        expected += [(band, 1 + column, shades.pop(0)) for column in range(count)]
    assert [box for box in boxes(sheet) if box[2] != 90] == expected, "in the order of their numbers"
    source = (sheet == 90).all(axis=2).any(axis=1).astype(int)
    assert np.count_nonzero(np.diff(source) == 1) == len(abreast), "every band starts with the source"


def test_columns_of_many_sites_stay_as_wide_as_of_eight() -> None:
    eight, many = (
        style_sheet({"one": flat(90)}, bank(**levels_of(n)), SETTINGS, sites=[f"site-{i}" for i in range(n)])
        for n in (8, 24)
    )
    assert many.shape[1] == eight.shape[1] and many.shape[0] > 3 * (eight.shape[0] - 60)


def test_names_of_every_band_are_written() -> None:
    images, levels = {"one": flat(90)}, levels_of(24)
    plain = style_sheet(images, bank(**levels), SETTINGS)
    levels["site-99"] = levels.pop("site-23")
    renamed = style_sheet(images, bank(**levels), SETTINGS)
    rows = np.flatnonzero((plain != renamed).any(axis=(1, 2)))
    assert rows.size and rows.min() > 2 * plain.shape[0] / 3 - 40, "the name in the last band"


def test_long_names_stay_in_their_columns_and_are_told_apart() -> None:
    """They lose their middle: ends are what differs."""
    images = {"one": flat(90)}
    found = []
    for end in "12":
        name = "town-in-the-rain-at-night-seen-from-the-roof-of-a-bus-number-" + end
        sites = [name, *(f"site-{i}" for i in range(7))]
        styles = bank(**dict.fromkeys(sites, 40))
        found.append(np.asarray(style_sheet(images, styles, SETTINGS, sites=sites)))
    rows, columns = np.nonzero((found[0] != found[1]).any(axis=2))
    assert rows.size and rows.max() < 30
    cell = (found[0].shape[1] - 12) // 9
    assert columns.min() >= 12 + cell and columns.max() < 2 * cell, "inside the first site's column"


@pytest.mark.parametrize("sites", [32, 33, 70])
def test_more_sites_than_a_sheet_holds_make_several(tmp_path: Path, sites: int) -> None:
    levels = levels_of(sites)
    first = write_style_picture(tmp_path / "styles.png", {"one": flat(90)}, bank(**levels), SETTINGS)
    sheets = -(-sites // 32)
    files = [first, *(tmp_path / f"styles-{number}.png" for number in range(2, sheets + 1))]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    shown: list[int] = []
    for file in files:
        with Image.open(file) as opened:
            shown += [level for _, _, level in boxes(np.asarray(opened)) if level != 90]
    assert shown == list(levels.values()), "every site on one of them, in order"


def test_a_sheet_of_several_says_so(tmp_path: Path) -> None:
    """The caption of 17 of 33 sites is longer than that of 17 alone."""
    levels = levels_of(33)
    first = write_style_picture(tmp_path / "styles.png", {"one": flat(90)}, bank(**levels), SETTINGS)
    with Image.open(first) as opened:
        drawn = np.asarray(opened)
    alone = np.asarray(style_sheet({"one": flat(90)}, bank(**levels), SETTINGS, sites=list(levels)[:17]))
    assert drawn.shape == alone.shape
    rows = np.flatnonzero((drawn != alone).any(axis=(1, 2)))
    assert rows.size and rows.min() >= drawn.shape[0] - 40


def test_names_are_written() -> None:
    images = {"one": flat(90)}
    plain = np.asarray(style_sheet(images, bank(dusk=40), SETTINGS))
    renamed = np.asarray(style_sheet(images, bank(noon=40), SETTINGS))
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
