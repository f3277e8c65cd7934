"""Tests which files of a folder are images: odd kinds, links, names, and masks that are no images."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.audit import find_images
from common.data.formats import Reading, shown
from common.data.images import image_size, read_image
from common.data.volumes import channel_count
from common.errors import UserError
from tests.conftest import ROOT
from tests.support.odd_images import photo, write_pillow, write_refused, write_volumes

OFFICIAL = ROOT.parent / "shared/data/official"


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    folder = tmp_path_factory.mktemp("odd") / "pictures"
    folder.mkdir()
    taken = write_pillow(folder)
    return folder, taken, write_refused(folder, folder.parent / "outside")


def test_each_odd_image_is_read_or_named_in_a_sentence(odd: tuple[Path, list[str], list[str]]) -> None:
    folder, taken, refused = odd
    assert len(taken) + len(refused) >= 34
    found = find_images(folder)
    sentences = list(found.left_out)
    seen = []
    for path in found.images:
        try:
            pixels = read_image(folder / path)
        except UserError as error:
            sentences.append(str(error))
            continue
        seen.append(path)
        assert pixels.shape == (*image_size(folder / path), 3) and pixels.dtype == np.uint8
        if "pixel" not in path:
            assert pixels.std() > 20, f"{path} is black, or of one color"
    assert sorted(seen) == sorted(taken)
    assert len(sentences) == len(refused)
    for name in refused:
        assert any(name in sentence for sentence in sentences), name
    assert all("\n" not in sentence and sentence.isprintable() for sentence in sentences)
    assert image_size(folder / "turned.jpg") == (48, 36)


def test_formats_of_other_packages(tmp_path: Path) -> None:
    for package in ("pillow_heif", "pydicom", "nibabel", "rasterio"):
        pytest.importorskip(package)
    names = write_volumes(tmp_path)
    assert sorted(find_images(tmp_path).images) == sorted(names)
    for name in names:
        pixels = read_image(tmp_path / name)
        assert pixels.shape == (*image_size(tmp_path / name), 3) and pixels.std() > 20
    bright, dark = (read_image(tmp_path / f"{name}.dcm").astype(int) for name in ("bright", "dark"))
    assert np.array_equal(bright, 255 - dark)
    assert channel_count(tmp_path / "five-bands.tif") == 5
    first, other = (
        read_image(tmp_path / "five-bands.tif", Reading(channels=c)) for c in ((1, 2, 3), (5, 1, 1))
    )
    assert np.array_equal(first, read_image(tmp_path / "five-bands.tif"))
    assert not np.array_equal(first, other) and np.array_equal(other[..., 1], other[..., 2])
    with pytest.raises(UserError, match="5 channels, but channel 6"):
        read_image(tmp_path / "five-bands.tif", Reading(channels=(6, 1, 1)))


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("common.data.volumes.importlib.import_module", absent)
    for ending, package in ((".heic", "pillow-heif"), (".dcm", "pydicom"), (".nii.gz", "nibabel")):
        (tmp_path / f"a{ending}").write_bytes(b"x")
        with pytest.raises(UserError, match=f"needs the package {package}"):
            read_image(tmp_path / f"a{ending}")


def test_a_bomb_is_refused_before_it_takes_memory(odd: tuple[Path, list[str], list[str]]) -> None:
    folder = odd[0]
    assert (folder / "bomb.png").stat().st_size < 1_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="13000 x 13000 pixels"):
        read_image(folder / "bomb.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_unprintable_names_are_shown_as_escapes() -> None:
    assert shown("a\udce9\u2028b\nc") == "a\\xe9\\u2028b\\nc"


@pytest.mark.shared
@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="needs the published samples beside the checkout")
@pytest.mark.parametrize(
    ("name", "images"),
    [
        *(
            ("dsb2018", 3),
            ("ade20k", 3),
            ("magnetic_tile", 6),
            ("drive", 3),
            ("refuge", 1),
            ("cityscapes", 4),
        ),
        *(
            ("coco8-seg", 8),
            ("coco_panoptic", 2),
            ("cocostuff", 21),
            ("labelme", 3),
            ("mapillary_thumbnail", 1),
        ),
        *(("potsdam", 1), ("vaihingen", 1), ("voc", 3), ("_bad/kitti_size_mismatch", 1)),
    ],
)
def test_of_published_samples_the_images_alone_are_taken(name: str, images: int) -> None:
    found = find_images(OFFICIAL / name)
    assert len(found.images) == images and not found.left_out
    kept = find_images(OFFICIAL / name, keep_masks=True)
    assert len(kept.images) == images + sum(len(kind.files) for kind in found.masks)


@pytest.mark.shared
@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="needs the published samples beside the checkout")
def test_pairs_of_other_sizes_are_named() -> None:
    (kind,) = find_images(OFFICIAL / "_bad/kitti_size_mismatch").masks
    assert kind.single and "but its label map semantic/000000_10.png is" in next(iter(kind.differ.values()))


def _mask(path: Path, values: tuple[int, ...] = (0, 255)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.zeros((36, 48), np.uint8)
    for place, value in enumerate(values):
        ids[place * 8 :, place * 6 :] = value
    Image.fromarray(ids).save(path)


def _photo(path: Path, seed: int, gray: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(photo(seed))
    (image.convert("L") if gray else image).save(path)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}.png", "labels/{}.png"),
        ("{}.jpg", "{}.png"),
        ("{}.png", "{}_mask.png"),
        ("frame{}.png", "frame{}-seg.png"),
        ("img_{}.png", "mask_{}.png"),
        ("a/pics/{}.png", "a/SegmentationClass/{}.png"),
        ("pics/{}.png", "outlines/{}.png"),
        ("case{}/images/scan.png", "case{}/masks/scan.png"),
        ("{}_leftImg8bit.png", "{}_gtFine_labelIds.png"),
    ],
)
def test_masks_are_no_images(tmp_path: Path, image: str, mask: str) -> None:
    for index in range(4):
        _photo(tmp_path / image.format(index), index)
        _mask(tmp_path / mask.format(index))
    found = find_images(tmp_path)
    assert found.images == [image.format(index) for index in range(4)]
    (kind,) = found.masks
    assert kind.single and kind.image_of == {mask.format(i): image.format(i) for i in range(4)}


def test_a_folder_of_gray_png_images_is_taken_whole(tmp_path: Path) -> None:
    for index in range(6):
        _photo(tmp_path / f"cell_{index}.png", index, gray=True)
        _photo(tmp_path / f"cell_{index}_2.png", index + 10, gray=True)
    assert len(find_images(tmp_path).images) == 12


def test_photos_in_a_folder_called_masks_are_images(tmp_path: Path) -> None:
    for index in range(4):
        _photo(tmp_path / "masks" / f"{index}.png", index)
        _photo(tmp_path / "no_masks" / f"{index}.png", index + 10)
    found = find_images(tmp_path)
    assert len(found.images) == 8 and not found.masks


def test_a_folder_of_masks_alone_is_taken(tmp_path: Path) -> None:
    for index in range(3):
        _mask(tmp_path / "labels" / f"{index}.png")
    assert len(find_images(tmp_path).images) == 3


def test_links_inside_are_taken_once_and_links_to_hidden_files_too(tmp_path: Path) -> None:
    _photo(tmp_path / "a.png", 0)
    _photo(tmp_path / ".store" / "b.png", 1)
    (tmp_path / "again.png").symlink_to("a.png")
    (tmp_path / "b.png").symlink_to(".store/b.png")
    (tmp_path / "loop").symlink_to(".")
    assert find_images(tmp_path).images == ["a.png", "b.png"]
