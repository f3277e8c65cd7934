"""Tests the library's face: three lines give a mask, whatever form the image has, and without Flower."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import siteseg
from common.data.classes import load_table
from server.commands.segment import segment
from tests.conftest import ROOT
from tests.support.checkpoints import write_checkpoint, write_network_checkpoint

WITHOUT_FLOWER = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("flwr", "ray"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import siteseg
model = siteseg.load(sys.argv[1])
mask = model.segment(sys.argv[2])
print(mask.dtype, *mask.shape, *sorted(set(mask.ravel().tolist())))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder, load_table("synthetic"), [3, -1, 0, 1, 7, 2])
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_path_pil_image_and_array_give_the_mask_of_the_command(
    run: Path, picture: Path, tmp_path: Path
) -> None:
    model = siteseg.load(run)
    mask = model.segment(picture)
    assert mask.dtype == np.uint8 and mask.shape == (40, 70) and len(np.unique(mask)) > 1
    segment(run, tmp_path / "out", [picture])
    np.testing.assert_array_equal(mask, np.asarray(Image.open(tmp_path / "out/labels/a.png")))
    opened = Image.open(picture)
    for form in (str(picture), opened, np.asarray(opened)):
        np.testing.assert_array_equal(model.segment(form), mask)


def test_gray_transparent_and_turned_pil_images_mean_what_their_files_mean(run: Path, tmp_path: Path) -> None:
    model = siteseg.load(run)
    noise = np.random.default_rng(1).integers(0, 256, (33, 44, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for name, mode in (("l.png", "L"), ("rgba.png", "RGBA"), ("cmyk.tif", "CMYK"), ("p.png", "P")):
        Image.fromarray(noise).convert(mode).save(tmp_path / name, exif=exif)
        with Image.open(tmp_path / name) as opened:
            mask = model.segment(opened)
        assert mask.shape == (44, 33) or name == "cmyk.tif"  # Pillow writes no orientation into a TIFF
        np.testing.assert_array_equal(mask, model.segment(tmp_path / name), err_msg=name)


def test_names_and_colors_are_those_of_the_legend(run: Path, picture: Path) -> None:
    model = siteseg.load(run)
    table = load_table("synthetic")
    assert model.named and model.names[:8] == table.names and model.names[8] == "cluster 1"
    mask = model.segment(picture)
    label = model.label_image(mask)
    assert label.mode == "P" and tuple(label.getpalette()[3:6]) == model.colors[1]  # type: ignore[index]
    assert model.overlay(picture, mask).size == (70, 40)


def test_a_whole_network_is_loaded_alike(picture: Path, tmp_path: Path) -> None:
    write_network_checkpoint(tmp_path / "net", clusters=True)
    assert siteseg.load(tmp_path / "net").segment(picture).shape == (40, 70)
    model = siteseg.load(tmp_path / "net", cluster=1)
    assert model.names == load_table("synthetic").names


def test_a_wrong_array_is_refused_in_one_sentence(run: Path) -> None:
    model = siteseg.load(run)
    for wrong in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)):
        with pytest.raises(siteseg.UserError, match=r"expected uint8 of shape \[H, W, 3\]"):
            model.segment(wrong)


@pytest.mark.parametrize("kind", ["frozen", "network"])
def test_nothing_on_the_way_to_a_mask_needs_flower(kind: str, picture: Path, tmp_path: Path) -> None:
    write = write_checkpoint if kind == "frozen" else write_network_checkpoint
    write(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FLOWER, str(tmp_path / "run"), str(picture)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("uint8 40 70 ")
