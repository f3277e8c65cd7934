"""Figures: exact pixels where images are laid out, words that cannot break a page or leave their place."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from common.figures import (
    as_svg,
    fitting,
    image_grid,
    legend_image,
    legend_layout,
    new_figure,
    stacked,
    styled,
)

RED, GREY = (200, 16, 32), (90, 90, 90)


def flat(color: tuple[int, int, int], height: int = 10, width: int = 20) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def box(pixels: np.ndarray, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right of a color."""
    ys, xs = np.nonzero((pixels == color).all(axis=2))
    return int(ys.min()), int(xs.min()), int(ys.max()) + 1, int(xs.max()) + 1


def test_images_lie_at_their_places_in_their_own_colors() -> None:
    grid = image_grid([[flat(GREY), flat(RED)], [flat(GREY, 30)]], ["a", "b"], 100, names=["one", "two"])
    top, left, bottom, right = box(grid, RED)
    assert (right - left, bottom - top) == (100, 50)
    assert box(grid, GREY)[:2] == (top, 12) and left == 124
    assert box(grid, GREY)[2] - top == 50 + 150 + 32, "a line and a gap between rows"


@pytest.mark.parametrize("extra", [{"caption": "x"}, {"legend": (("sky", "#0000ff"),)}, {"notes": ["n", ""]}])
def test_words_make_room_for_themselves(extra: dict[str, object]) -> None:
    plain = image_grid([[flat(RED)]], ["a", "b"], 100)
    more = image_grid([[flat(RED)]], ["a", "b"], 100, **extra)  # type: ignore[arg-type]
    assert more.shape[0] > plain.shape[0] and more.shape[1] == plain.shape[1]
    top, left, bottom, right = box(more, RED)
    assert (right - left, bottom - top) == (100, 50)


def test_names_that_are_too_long_lose_their_middle() -> None:
    assert fitting("site-1", 100, 10) == "site-1"
    found = fitting("a-town-with-a-very-long-name-17", 100, 10)
    assert len(found) == 16 and found.startswith("a-town") and found.endswith("name-17") and "…" in found
    assert 1 <= len(fitting("abcdefgh", 1, 10)) <= 3


def test_a_legend_takes_the_rows_that_it_needs() -> None:
    entries = tuple((f"class number {i}", f"#0000{i:02x}") for i in range(12))
    columns, height = legend_layout(entries, 300, 14)
    assert columns == 1 or legend_layout(entries, 3000, 14) == (12, pytest.approx(38, abs=2))
    drawn = legend_image(entries, 300, 14)
    assert drawn.shape == (height, 300, 3)
    shades = {int(blue) for blue in drawn[(drawn[..., :2] == 0).all(axis=2)][:, 2]}
    assert shades >= set(range(12)), "all are drawn inside"
    assert legend_image((), 300, 14).shape == (0, 300, 3)


def test_stacked_images_start_left() -> None:
    found = stacked([flat(RED, 3, 5), flat(GREY, 4, 9)])
    assert found.shape == (7, 9, 3) and tuple(found[0, 4]) == RED and tuple(found[0, 5]) == (255, 255, 255)


@styled
def words(text: str) -> str:
    figure = new_figure(200, 100)
    figure.text(0, 0, text)
    return as_svg(figure, text)


def test_text_of_an_svg_stays_text_and_two_drawings_share_no_id() -> None:
    text = "<b>&\"' $x_2$ 日本"
    root = ElementTree.fromstring(words(text))
    found = ["".join(one.itertext()).strip() for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert found == [text] and root.get("aria-label") == text and root.get("role") == "img"
    assert words(text) == words(text), "the same figure is the same file"
    ids = [one.get("id") for one in root.iter() if one.get("id")]
    assert not [one for one in ids if "_" in str(one)]
