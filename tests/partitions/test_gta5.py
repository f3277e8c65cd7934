"""Is GTA5 read by palette index, by its lists, and with sizes repaired? Proven on a tiny replica."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data.classes import load_table
from common.data.images import entry_pair, read_label
from common.data.manifest import read_partition, read_shard
from partitions.__main__ import partitions_main as main
from tests.support.replicas import put_label, put_picture


@pytest.fixture
def gta5(tmp_path: Path) -> Path:
    """Five pictures; 00002 is larger than its label map; raw ids road, ego vehicle, polegroup, caravan."""
    root = tmp_path / "gta5"
    for i in range(1, 6):
        put_picture(root / f"images/{i:05d}.png", (12, 24) if i == 2 else (8, 16))
        put_label(root / f"labels/{i:05d}.png", [7, 1, 18, 29], palette=True)
    return root


def _run(root: Path, out: Path, *words: str) -> None:
    assert main(["gta5", "--root", str(root), "--out", str(out), *words]) == 0


@pytest.mark.parametrize(
    ("table", "train_ids"),
    [
        ("gta5-19", [0, 255, 255, 255]),
        ("gta5-16", [0, 13, 5, 255]),
        ("gta5-13", [0, 255, 255, 255]),
    ],
)
def test_labels_are_palette_indices_in_all_three_tables(gta5: Path, table: str, train_ids: list[int]) -> None:
    assert read_label(gta5 / "labels/00001.png", load_table(table))[0, :4].tolist() == train_ids


def test_all_pictures_are_one_manifest_and_sizes_are_repaired(gta5: Path, tmp_path: Path) -> None:
    _run(gta5, tmp_path / "o", "--classes", "gta5-16")
    partition = read_partition(tmp_path / "o")
    assert partition.sites == {"site-0": 5} and partition.classes == load_table("gta5-16")
    assert partition.histogram is not None and partition.histogram["site-0"][0] == 5 * 8 * 16 / 4
    assert partition.settings["repair_sizes"] is True
    shard = read_shard(tmp_path / "o/site-0.jsonl")
    assert shard.labelled and shard.repair_sizes
    pixels, ids = entry_pair(shard, 1, load_table("gta5-16"))
    assert pixels.shape == (8, 16, 3) and ids.shape == (8, 16)


def test_names_with_blanks_and_folders_below_are_read(gta5: Path, tmp_path: Path) -> None:
    for name in ("00006 copy", "part2/00007"):
        put_picture(gta5 / f"images/{name}.png")
        put_label(gta5 / f"labels/{name}.png", [7], palette=True)
    _run(gta5, tmp_path / "o")
    entries = read_shard(tmp_path / "o/site-0.jsonl").entries
    assert [(e.image, e.label) for e in entries[5:]] == [
        ("images/00006 copy.png", "labels/00006 copy.png"),
        ("images/part2/00007.png", "labels/part2/00007.png"),
    ]


@pytest.mark.parametrize(
    "lines",
    ["00003.png\n\n00001.png\n", "/images/00003.png /labels/00003.png\nimages/00001.png labels/00001.png"],
)
def test_list_files_of_both_kinds(gta5: Path, tmp_path: Path, lines: str) -> None:
    (gta5 / "train.txt").write_text(lines)
    (gta5 / "test.txt").write_text("00005.png\n")
    _run(gta5, tmp_path / "o")
    entries = read_shard(tmp_path / "o/site-0.jsonl").entries
    assert [e.image for e in entries] == ["images/00003.png", "images/00001.png"]
    assert [e.label for e in entries] == ["labels/00003.png", "labels/00001.png"]
    assert read_partition(tmp_path / "o").evaluation == {"test": 1}


def test_pictures_that_are_scored_are_not_trained_on(gta5: Path, tmp_path: Path) -> None:
    (gta5 / "test.txt").write_text("00005.png\n")
    _run(gta5, tmp_path / "o", "--sites", "2")
    assert read_partition(tmp_path / "o").sites == {"site-0": 2, "site-1": 2}
    assert (
        "00005" not in (tmp_path / "o/site-0.jsonl").read_text() + (tmp_path / "o/site-1.jsonl").read_text()
    )


def test_a_picture_that_is_trained_on_is_not_scored(
    gta5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (gta5 / "train.txt").write_text("00001.png\n00005.png\n")
    (gta5 / "test.txt").write_text("00005.png\n")
    with pytest.raises(SystemExit):
        _run(gta5, tmp_path / "o")
    assert (
        "train on 'images/00005.png' and score it in test; an image has one role" in capsys.readouterr().err
    )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a b c", "expected a file name, or image and label path"),
        ("../x.png labels/x.png", "expected a file name, or image and label path"),
        ("00009.png", "00009.png of split 'train' is missing"),
        ("", "names no image"),
        ("00001.png\n00002.png\n00001.png", "train.txt names '00001.png' more than once"),
        ("00001.png\nimages/00001.png labels/00001.png", "stands in the training images more than once"),
    ],
)
def test_lists_that_cannot_be(
    gta5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, sentence: str
) -> None:
    (gta5 / "train.txt").write_text(line)
    with pytest.raises(SystemExit):
        _run(gta5, tmp_path / "o")
    assert sentence in capsys.readouterr().err
