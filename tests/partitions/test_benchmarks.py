"""Are the public benchmarks read in their official layouts? Proven on tiny replicas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.check import check_shard
from common.data.classes import load_table
from common.data.images import read_label
from common.data.manifest import VIEWS, read_partition, read_shard, read_sites
from partitions.__main__ import partitions_main as main

CITIES = [
    "aachen",
    "bochum",
    "bremen",
    "cologne",
    "darmstadt",
    "dusseldorf",
    "erfurt",
    "hamburg",
    "hanover",
    "jena",
    "krefeld",
    "monchengladbach",
    "strasbourg",
    "stuttgart",
    "tubingen",
    "ulm",
    "weimar",
    "zurich",
]


def _picture(path: Path, size: tuple[int, int] = (8, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, dtype=np.uint8)).save(path)


def _label(path: Path, values: list[int], size: tuple[int, int] = (8, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.asarray(values, dtype=np.uint8), size)).save(path)


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cityscapes")
    for split, cities in (("train", CITIES), ("val", ["frankfurt", "lindau", "munster"])):
        for number, city in enumerate(cities):
            for frame in range(1 + number % 2):
                name = f"{city}_{frame:06d}_000019"
                _picture(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png")
                _label(root / f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png", [0, 6, 7, 33, number + 7])
                (root / f"gtFine/{split}/{city}/{name}_gtFine_instanceIds.png").touch()
    return root


def test_cityscapes_one_site_per_city(cityscapes: Path, tmp_path: Path) -> None:
    assert main(["cityscapes", "--root", str(cityscapes), "--out", str(tmp_path / "o")]) == 0
    partition = read_partition(tmp_path / "o")
    assert [list(found) for found in partition.domains.values()] == [[city] for city in CITIES]
    assert partition.evaluation == {"val": 4} and partition.classes == load_table("cityscapes-27")
    for shard in (*read_sites(tmp_path / "o"), read_shard(tmp_path / "o/val.jsonl")):
        assert check_shard(shard, labels=True) == []


@pytest.mark.parametrize(("sites", "first"), [(3, CITIES[:6]), (6, CITIES[:3])])
def test_cityscapes_alphabetical_blocks(
    cityscapes: Path, tmp_path: Path, sites: int, first: list[str]
) -> None:
    out = tmp_path / "o"
    assert main(["cityscapes", "--root", str(cityscapes), "--sites", str(sites), "--out", str(out)]) == 0
    partition = read_partition(out)
    assert len(partition.sites) == sites and set(partition.domains["site-0"]) == set(first)


def test_cityscapes_five_views_for_the_sites_and_whole_images_for_evaluation(
    cityscapes: Path, tmp_path: Path
) -> None:
    words = ["cityscapes", "--root", str(cityscapes), "--sites", "3", "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    assert main([*words, str(tmp_path / "five"), "--crops", "five"]) == 0
    whole, five = read_partition(tmp_path / "whole"), read_partition(tmp_path / "five")
    assert five.sites == {name: 5 * count for name, count in whole.sites.items()}
    assert five.histogram == whole.histogram  # of the photos, once each
    assert five.settings["crops"] == "five"
    for photos, views in zip(read_sites(tmp_path / "whole"), read_sites(tmp_path / "five"), strict=True):
        shown = [(entry.image, view) for entry in photos.entries for view in VIEWS]
        assert [(entry.image, entry.view) for entry in views.entries] == shown
        assert check_shard(views, labels=True) == []
    assert all(entry.view is None for entry in read_shard(tmp_path / "five/val.jsonl").entries)


def test_cityscapes_27_counts_from_label_id_seven(tmp_path: Path) -> None:
    _label(tmp_path / "l.png", [0, 6, 7, 33, 255], (1, 5))
    assert read_label(tmp_path / "l.png", load_table("cityscapes-27")).tolist() == [[255, 255, 0, 26, 255]]
    assert load_table("cityscapes-27").names[19] == "car"


@pytest.fixture
def cocostuff(tmp_path: Path) -> Path:
    """24 training images with one dominant fine id each, and two for validation."""
    root = tmp_path / "coco"
    names = [f"{i:012d}" for i in range(26)]
    for i, name in enumerate(names):
        split = "train2017" if i < 24 else "val2017"
        _picture(root / f"images/{split}/{name}.jpg")
        _label(root / f"annotations/{split}/{name}.png", [i % 6 * 30, i % 6 * 30, 255])
    for split, chosen, file in (
        ("train2017", names[:24], "Coco164kFull_Stuff_Coarse.txt"),
        ("val2017", names[24:], "Coco164kFull_Stuff_Coarse_7.txt"),
    ):
        (root / "curated" / split).mkdir(parents=True)
        (root / "curated" / split / file).write_text("\n".join(chosen) + "\n")
    return root


def test_cocostuff_eighteen_skewed_sites(cocostuff: Path, tmp_path: Path) -> None:
    assert main(["cocostuff", "--root", str(cocostuff), "--seed", "1", "--out", str(tmp_path / "o")]) == 0
    partition = read_partition(tmp_path / "o")
    assert len(partition.sites) == 18 and sum(partition.sites.values()) == 24
    assert (partition.rule, partition.settings["over"]) == ("dirichlet", "classes")
    assert check_shard(read_shard(tmp_path / "o/val.jsonl"), labels=True) == []


def test_cocostuff_lists_of_the_user(
    cocostuff: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train__client10.txt").write_text("000000000005\n")
    (lists / "train__client2.txt").write_text("000000000009\n000000000001\n")
    arguments = ["cocostuff", "--root", str(cocostuff), "--site-lists", str(lists)]
    assert main([*arguments, "--out", str(tmp_path / "o")]) == 0
    sites = read_sites(tmp_path / "o")
    assert [[e.image[-7:] for e in s.entries] for s in sites] == [
        ["009.jpg".rjust(7, "0")[-7:], "001.jpg"],
        ["005.jpg"],
    ]
    (lists / "train__client3.txt").write_text("000000000009\n")
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(tmp_path / "p")])
    assert "both name 000000000009" in capsys.readouterr().err


def test_cocostuff_tables_cover_every_fine_id_once() -> None:
    full, stuff, three = (load_table(f"cocostuff-{n}") for n in (27, 15, 3))
    assert (full.num_classes, stuff.num_classes, three.num_classes) == (27, 15, 3)
    assert [int(full.lut()[i]) for i in (0, 71, 105, 181, 255)] == [9, 0, 23, 24, 255]
    assert [int(stuff.lut()[i]) for i in (0, 101, 105, 178)] == [255, 0, 11, 14]
    assert [int(three.lut()[i]) for i in (105, 93, 110, 119)] == [0, 1, 2, 255]
    assert three.names == ("sky", "plant", "ground")
    assert not full.known()[182]


def test_potsdam_is_cut_and_its_colours_become_three_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "potsdam"
    colours = np.array(
        [[255, 255, 255], [0, 0, 255], [0, 255, 255], [0, 255, 0], [255, 255, 0], [255, 0, 0]], dtype=np.uint8
    )
    coded = colours[np.arange(80 * 80).reshape(80, 80) // 32 % 6]
    for name in ("2_10", "2_11", "3_10", "2_13", "7_13"):
        _picture(root / f"2_Ortho_RGB/top_potsdam_{name}_RGB.tif", (80, 80))
        if name != "7_13":
            (root / "5_Labels_all").mkdir(exist_ok=True)
            Image.fromarray(coded).save(root / f"5_Labels_all/top_potsdam_{name}_label.tif")
    out = tmp_path / "o"
    arguments = ["potsdam", "--root", str(root), "--tile", "32", "--out", str(out)]
    assert main(arguments) == 0
    partition = read_partition(out)
    assert partition.sites == {"site-0": 8, "site-1": 4} and partition.evaluation == {"test": 4}
    shard = read_sites(out)[0]
    assert check_shard(shard, labels=True) == []
    path = shard.label_path(0)
    assert path is not None
    expected = np.array([0, 1, 2, 2, 0, 1])[(np.arange(80 * 80).reshape(80, 80) // 32 % 6)[:32, :32]]
    assert np.array_equal(read_label(path, load_table("potsdam-3")), expected)
    assert main([*arguments, "--overwrite"]) == 0
    coded[3, 5] = (1, 2, 3)
    Image.fromarray(coded).save(root / "5_Labels_all/top_potsdam_3_10_label.tif")
    with pytest.raises(SystemExit):
        main([*arguments, "--overwrite"])
    assert "has the colour (1, 2, 3) at row 3, column 5" in capsys.readouterr().err
    assert read_partition(out) == partition


@pytest.mark.parametrize("inner", ["", "VOC2012"])
def test_voc(tmp_path: Path, inner: str) -> None:
    base = tmp_path / "VOCdevkit" / inner
    for split, count in (("train", 12), ("val", 2)):
        names = [f"2007_{split}{i:02d}" for i in range(count)]
        for i, name in enumerate(names):
            _picture(base / f"JPEGImages/{name}.jpg")
            _label(base / f"SegmentationClass/{name}.png", [0, i % 20 + 1, 255])
        (base / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (base / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names))
    arguments = ["voc", "--root", str(tmp_path / "VOCdevkit"), "--sites", "4", "--out", str(tmp_path / "o")]
    assert main(arguments) == 0
    partition = read_partition(tmp_path / "o")
    assert len(partition.sites) == 4 and partition.evaluation == {"val": 2}
    table = load_table("voc")
    assert table.num_classes == 21 and table.colours[15] == (192, 128, 128)
    for shard in (*read_sites(tmp_path / "o"), read_shard(tmp_path / "o/val.jsonl")):
        assert check_shard(shard, labels=True) == []


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        ("cityscapes", "(expected: ROOT/leftImg8bit/{train,val}/CITY"),
        ("cocostuff", "expected one image name per line"),
        ("potsdam", "(expected: ROOT/2_Ortho_RGB"),
        ("voc", "expected one image name per line"),
    ],
)
def test_another_layout_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dataset: str, sentence: str
) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(SystemExit) as stop:
        main([dataset, "--root", str(tmp_path / "root"), "--out", str(tmp_path / "o")])
    assert stop.value.code == 2 and sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_missing_label_is_named(
    cityscapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = next((cityscapes / "gtFine/train/zurich").glob("*labelIds.png"))
    kept = gone.read_bytes()
    gone.unlink()
    with pytest.raises(SystemExit):
        main(["cityscapes", "--root", str(cityscapes), "--out", str(tmp_path / "o")])
    gone.write_bytes(kept)
    assert gone.name in capsys.readouterr().err
