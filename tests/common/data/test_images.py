"""Do pictures and label maps come off the disk right, whatever form they have?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.classes import load_table
from common.data.formats import Reading
from common.data.images import image_size, read_image, read_label, read_raw_label
from common.errors import UserError

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def test_rgb_comes_back_as_it_was(tmp_path: Path) -> None:
    rgb = np.stack([RAMP, RAMP + 1, RAMP + 2], axis=2)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), rgb)
    assert read_image(tmp_path / "a.png").flags.writeable


def test_grey_is_repeated(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.repeat(RAMP[..., None], 3, axis=2))


def test_sixteen_bits_are_scaled_by_the_range_of_the_file_or_by_a_window(tmp_path: Path) -> None:
    wide = np.array([[0, 16, 2048, 4095]], dtype=np.uint16)  # twelve bits: black if taken for sixteen
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 128, 255]
    stated = read_image(tmp_path / "a.png", Reading(window=(0, 65535)))
    assert stated[0, :, 0].tolist() == [0, 0, 8, 16]


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 2, 4), dtype=np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_palette_bilevel_and_cmyk_become_rgb(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    palette.putpalette([1, 2, 3, 200, 100, 50])
    palette.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png")[0].tolist() == [[1, 2, 3], [200, 100, 50]]
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1").save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png")[0].tolist() == [[0, 0, 0], [255, 255, 255]]
    Image.new("CMYK", (4, 3), (0, 0, 0, 0)).save(tmp_path / "c.jpg")
    assert read_image(tmp_path / "c.jpg").shape == (3, 4, 3)


def test_exif_turns_the_picture_and_its_size(tmp_path: Path) -> None:
    picture = Image.fromarray(np.repeat(RAMP[..., None], 3, axis=2))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png").shape == (4, 3, 3)
    assert image_size(tmp_path / "a.png") == (4, 3)
    assert np.array_equal(read_image(tmp_path / "a.png")[..., 0], np.rot90(RAMP, -1))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").touch()
    for name, sentence in [
        ("half.jpg", "half.jpg is damaged or truncated"),
        ("text.jpg", "text.jpg is no picture"),
        ("empty.png", "empty.png is empty"),
        ("gone.png", "gone.png does not exist"),
    ]:
        with pytest.raises(UserError, match=sentence):
            read_image(tmp_path / name)


def test_labels_become_train_ids(tmp_path: Path) -> None:
    raw = np.array([[3, 11], [0, 255]], dtype=np.uint8)
    Image.fromarray(raw).save(tmp_path / "l.png")
    assert read_label(tmp_path / "l.png", load_table("camvid")).tolist() == [[3, 255], [0, 255]]
    assert read_label(tmp_path / "l.png", load_table("camvid-road")).tolist() == [[1, 255], [0, 255]]


def test_palette_and_bilevel_labels_give_indices(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    palette.putpalette([9, 9, 9, 200, 100, 50])
    palette.save(tmp_path / "p.png")
    assert read_raw_label(tmp_path / "p.png").tolist() == [[0, 1]]
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1").save(tmp_path / "b.png")
    assert read_raw_label(tmp_path / "b.png").tolist() == [[0, 1]]


def test_bad_labels_are_named_with_file_and_value(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 12]], dtype=np.uint8)).save(tmp_path / "range.png")
    Image.fromarray(np.array([[[0, 1, 0]]], dtype=np.uint8)).save(tmp_path / "rgb.png")
    Image.fromarray(np.array([[0, 300]], dtype=np.uint16)).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("x")
    for name, sentence in [
        ("range.png", "range.png holds the value 12, which class table 'camvid'"),
        ("rgb.png", "rgb.png is a RGB picture; expected one channel"),
        ("wide.png", "wide.png holds the value 300; expected 0 to 255"),
        ("text.png", "text.png is no picture"),
        ("gone.png", "gone.png does not exist"),
    ]:
        with pytest.raises(UserError, match=sentence):
            read_label(tmp_path / name, load_table("camvid"))
