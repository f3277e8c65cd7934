"""Are Cityscapes with 19 classes, CrossCity and Mapillary read in their layouts? Proven on tiny replicas."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data.check import check_shard
from common.data.classes import load_table
from common.data.manifest import read_partition, read_shard, read_sites
from partitions.__main__ import partitions_main as main
from tests.support.replicas import put_label, put_picture

CITIES = ("Rio", "Rome", "Taipei", "Tokyo")


def _run(dataset: str, root: Path, out: Path, *words: str) -> None:
    assert main([dataset, "--root", str(root), "--out", str(out), *words]) == 0


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """Three cities of two, six and four images; raw ids parking (of 27, not of 19), road, -1 as 255."""
    root = tmp_path / "cityscapes"
    for split, cities in (("train", {"aachen": 2, "bremen": 6, "ulm": 4}), ("val", {"munster": 1})):
        for city, count in cities.items():
            for i in range(count):
                name = f"{city}_{i:06d}_000019"
                put_picture(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png")
                put_label(root / f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png", [9, 7, 33, 255])
    return root


def test_cityscapes_19(cityscapes: Path, tmp_path: Path) -> None:
    _run("cityscapes", cityscapes, tmp_path / "o", "--classes", "cityscapes-19")
    partition = read_partition(tmp_path / "o")
    assert partition.classes == load_table("cityscapes-19") and partition.histogram is not None
    counts = partition.histogram["site-0"]
    assert counts[0] == counts[18] == 2 * 32 and sum(counts) == 2 * 64, "parking is ignored"
    assert (tmp_path / "o/split.png").is_file()


def test_many_clients_are_pieces_of_single_cities(cityscapes: Path, tmp_path: Path) -> None:
    _run("cityscapes", cityscapes, tmp_path / "o", "--classes", "cityscapes-19", "--sites", "7")
    partition = read_partition(tmp_path / "o")
    assert len(partition.sites) == 7 and sum(partition.sites.values()) == 12
    assert all(len(found) == 1 for found in partition.domains.values())
    assert set(partition.sites.values()) <= {1, 2}


@pytest.fixture
def crosscity(tmp_path: Path) -> Path:
    """Four cities of three pictures without labels and two with."""
    root = tmp_path / "crosscity"
    for number, city in enumerate(CITIES):
        for i in range(3):
            put_picture(root / f"cities/{city}/Images/Train/pano_{i}.jpg", grey=60 * number)
        for i in range(2):
            put_picture(root / f"cities/{city}/Images/Test/pano_{i}.png")
            put_label(root / f"cities/{city}/Labels/Test/pano_{i}_eval.png", [7, 28, 34])
    return root


def test_crosscity_trains_without_labels_and_scores_by_city(crosscity: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    _run("crosscity", crosscity, out)
    partition = read_partition(out)
    assert [list(found) for found in partition.domains.values()] == [[city] for city in CITIES]
    assert partition.evaluation == {"test": 8} and partition.histogram is None
    assert partition.classes == load_table("crosscity-13")
    assert all(entry.label is None for shard in read_sites(out) for entry in shard.entries)
    test = read_shard(out / "test.jsonl")
    assert [entry.domain for entry in test.entries] == [city for city in CITIES for _ in range(2)]
    assert check_shard(test, labels=True) == [] and (out / "split.png").is_file()


def test_crosscity_divides_into_many_clients_of_a_city_each(crosscity: Path, tmp_path: Path) -> None:
    _run("crosscity", crosscity, tmp_path / "o", "--sites", "9")
    partition = read_partition(tmp_path / "o")
    assert len(partition.sites) == 9 and all(len(found) == 1 for found in partition.domains.values())


def test_mapillary_takes_labels_of_version_1_2(tmp_path: Path) -> None:
    root = tmp_path / "mapillary"
    for split, count in (("training", 4), ("validation", 2)):
        for i in range(count):
            put_picture(root / f"{split}/images/p{i}.jpg")
            put_label(root / f"{split}/v1.2/labels/p{i}.png", [13, 24, 52, 65], palette=True)
            put_label(root / f"{split}/v2.0/labels/p{i}.png", [0])
    _run("mapillary", root, tmp_path / "o", "--sites", "2", "--seed", "1")
    partition = read_partition(tmp_path / "o")
    assert partition.rule == "iid" and partition.evaluation == {"val": 2}
    assert partition.histogram is not None
    counts = partition.histogram["site-0"]
    assert (counts[0], counts[18], sum(counts)) == (2 * 64, 2 * 32, 2 * 96), "road with markings, bicycle"
    assert "v1.2" in str(read_shard(tmp_path / "o/val.jsonl").entries[0].label)


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        ("crosscity", "holds no images of split 'train' (expected: ROOT (or ROOT/cities) holds CITY/Images"),
        ("mapillary", "(expected: ROOT/{training,validation}/images/NAME.jpg"),
        ("gta5", "(expected: ROOT/images/NNNNN.png"),
        ("idda", "(expected: ROOT/DOMAIN/RGB/"),
    ],
)
def test_folders_of_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dataset: str, sentence: str
) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(SystemExit) as stop:
        _run(dataset, tmp_path / "root", tmp_path / "o")
    assert stop.value.code == 2 and sentence in capsys.readouterr().err
