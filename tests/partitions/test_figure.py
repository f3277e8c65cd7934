"""The image of a split shows every site's size, images and mix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from partitions.figure import SplitRow, draw_split

COLOURS = ((10, 20, 200), (200, 30, 10))


@pytest.fixture
def row(tmp_path: Path) -> SplitRow:
    Image.new("RGB", (60, 40), (20, 150, 40)).save(tmp_path / "a.png")
    return SplitRow("site-0", 3, "dusk\u00a02, day\u00a01", [tmp_path / "a.png"] * 3, np.array([0.75, 0.25]))


def draw(*rows: SplitRow, evaluation: tuple[SplitRow, ...] = ()) -> np.ndarray:
    drawn = draw_split("data: sites", "9 images", rows, evaluation, ("sky", "road"), COLOURS, "classes, %")
    return np.asarray(drawn)


def count(pixels: np.ndarray, color: tuple[int, ...]) -> int:
    return int((pixels == color).all(axis=2).sum())


def test_bars_have_the_lengths_of_the_shares_and_images_are_shown(row: SplitRow) -> None:
    drawn = draw(row)
    assert drawn.shape[1] == 1480
    inside = drawn[116:220]
    first, second = (count(inside, color) for color in COLOURS)
    assert first == pytest.approx(3 * second, rel=0.1)
    one = count(draw(replace(row, samples=row.samples[:1])), (20, 150, 40))
    assert one > 5000 and count(drawn, (20, 150, 40)) == pytest.approx(3 * one, rel=0.05)


def test_a_longer_bar_is_more_images(row: SplitRow) -> None:
    drawn = draw(row, replace(row, images=6))
    blue = (drawn == (60, 110, 180)).all(axis=2)
    fewer, more = (int(part.any(axis=0).sum()) for part in (blue[116:220], blue[220:324]))
    assert more == pytest.approx(2 * fewer, abs=2) and more > 150


def test_sites_evaluation_and_sites_left_out_make_rows(row: SplitRow) -> None:
    one, two = draw(row).shape[0], draw(row, row).shape[0]
    assert draw(row, evaluation=(replace(row, share=None),)).shape[0] == two > one
    most = draw(*[row] * 24).shape[0]
    assert most == one + 23 * (two - one)
    assert most < draw(*[row] * 30).shape[0] < most + (two - one), "a line says how many more there are"


def test_long_names_and_notes_stay_out_of_the_images(row: SplitRow) -> None:
    drawn = draw(row)
    long = draw(replace(row, name="site-" + "x" * 90, note="a-very-long-domain " * 30))
    assert np.array_equal(drawn[116:215, 268:], long[116:215, 268:])
    assert not np.array_equal(drawn, long)
