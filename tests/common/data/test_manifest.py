"""Do manifests say which images belong to a site, and is every broken line refused by number?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.data.classes import load_table
from common.data.manifest import (
    Entry,
    Partition,
    pool_shards,
    read_partition,
    read_shard,
    read_sites,
    write_manifest,
    write_partition,
)
from common.errors import UserError


def _partition(root: Path, sites: dict[str, int]) -> Partition:
    return Partition("camvid", "iid", 3, root, sites, load_table("camvid"), {"site-0": [1] * 11})


def test_entries_survive_the_file(tmp_path: Path) -> None:
    entries = (Entry("a/ü 1.jpg", "l/1.png", "dusk"), Entry("b.jpg"))
    write_manifest(tmp_path / "s.jsonl", entries)
    shard = read_shard(tmp_path / "s.jsonl")
    assert shard.entries == entries
    assert (shard.name, len(shard), shard.labelled) == ("s", 2, False)
    assert shard.image_path(0) == tmp_path / "a/ü 1.jpg"
    assert (shard.label_path(0), shard.label_path(1)) == (tmp_path / "l/1.png", None)
    assert json.loads((tmp_path / "s.jsonl").read_text().splitlines()[1]) == {"image": "b.jpg"}


def test_root_and_classes_come_from_the_argument_then_partition_then_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "out").mkdir()
    write_manifest(tmp_path / "out/site-0.jsonl", [Entry("a.jpg", "a.png")])
    assert read_shard(tmp_path / "out/site-0.jsonl").root == tmp_path / "out"
    assert read_shard(tmp_path / "out/site-0.jsonl").classes is None
    write_partition(tmp_path / "out", _partition(tmp_path / "data", {"site-0": 1}))
    shard = read_shard(tmp_path / "out/site-0.jsonl")
    assert shard.root == tmp_path / "data" and shard.classes == load_table("camvid") and shard.labelled
    shard = read_shard(tmp_path / "out/site-0.jsonl", tmp_path / "other", load_table("crackforest"))
    assert shard.root == tmp_path / "other" and shard.classes == load_table("crackforest")


def test_partition_survives_the_file_and_moves_with_data_inside_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    partition = _partition(out / "data", {"site-0": 1})
    write_partition(out, partition)
    assert read_partition(out) == partition
    out.rename(tmp_path / "moved")
    assert read_partition(tmp_path / "moved").root == tmp_path / "moved/data"


def test_a_root_elsewhere_is_absolute(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_partition(tmp_path / "out", _partition(tmp_path / "data", {"site-0": 1}))
    assert json.loads((tmp_path / "out/partition.json").read_text())["root"] == str(tmp_path / "data")


def test_sites_come_in_natural_order_with_and_without_a_record(tmp_path: Path) -> None:
    for i in (10, 2, 0):
        write_manifest(tmp_path / f"site-{i}.jsonl", [Entry(f"{i}.jpg")])
    expected = ["site-0", "site-2", "site-10"]
    assert [shard.name for shard in read_sites(tmp_path)] == expected
    write_partition(tmp_path, _partition(tmp_path, {"site-10": 1, "site-2": 1, "site-0": 1}))
    assert [shard.name for shard in read_sites(tmp_path)] == expected


def test_pooling_keeps_the_order_and_each_image_once(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.jsonl", [Entry("1.jpg"), Entry("2.jpg")])
    write_manifest(tmp_path / "b.jsonl", [Entry("2.jpg"), Entry("3.jpg")])
    shards = [read_shard(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    pooled = pool_shards(shards, "all")
    assert [entry.image for entry in pooled.entries] == ["1.jpg", "2.jpg", "3.jpg"]
    assert pooled.name == "all" and pooled.root == tmp_path
    (tmp_path / "sub").mkdir()
    with pytest.raises(UserError, match="expected a single one"):
        pool_shards([shards[0], read_shard(tmp_path / "b.jsonl", tmp_path / "sub")], "all")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2 is no JSON"),
        ('"a.jpg"', "line 2"),
        ('{"label": "a.png"}', "line 2: 'image' is missing"),
        ('{"image": "a.jpg", "lable": "a.png"}', "line 2: 'lable' is an unknown key"),
        ('{"image": 3}', "line 2: 'image' is 3"),
        ('{"image": ""}', "line 2: 'image' is ''"),
        ('{"image": "a.jpg", "domain": 1}', "line 2: 'domain' is 1"),
        ('{"image": "/etc/a.jpg"}', "line 2: 'image' is '/etc/a.jpg': it leaves the data root"),
        ('{"image": "x/../../a.jpg"}', "line 2: 'image' is .* leaves the data root"),
        ('{"image": "a.jpg", "label": "../a.png"}', "line 2: 'label' is '../a.png': it leaves the data root"),
        ('{"image": "good.jpg"}', "line 2 names the image 'good.jpg' of line 1 again"),
        ('{"image": "link.jpg"}', "line 2: the image 'link.jpg' leaves the data root .* symbolic link"),
        ('{"image": "away/a.jpg"}', "line 2: the image 'away/a.jpg' leaves the data root .* symbolic link"),
    ],
)
def test_a_broken_line_is_refused_by_file_and_number(tmp_path: Path, line: str, sentence: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside.jpg").touch()
    (root / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (root / "away").symlink_to(tmp_path / "outside")
    (tmp_path / "m.jsonl").write_text('{"image": "good.jpg"}\n' + line + "\n")
    with pytest.raises(UserError, match=f"m.jsonl {sentence}"):
        read_shard(tmp_path / "m.jsonl", root)


def test_links_that_stay_inside_are_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    write_manifest(tmp_path / "m.jsonl", [Entry("alias/a.jpg")])
    assert len(read_shard(tmp_path / "m.jsonl")) == 1


def test_absent_or_empty_things_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    write_manifest(tmp_path / "m.jsonl", [Entry("a.jpg")])
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: read_shard(tmp_path / "empty.jsonl"), "names no image"),
        (lambda: read_shard(tmp_path / "binary.jsonl"), "cannot be read"),
        (lambda: read_shard(tmp_path / "gone.jsonl"), "does not exist"),
        (lambda: read_shard(tmp_path), "is a folder; give one manifest"),
        (lambda: read_shard(tmp_path / "m.jsonl", tmp_path / "gone"), "data root .*gone.* is no folder"),
        (lambda: read_sites(tmp_path / "gone"), "shards folder .* does not exist"),
        (lambda: read_sites(tmp_path), "holds no site-"),
        (lambda: read_partition(tmp_path), "holds no partition.json"),
    ]
    for call, sentence in calls:
        with pytest.raises(UserError, match=sentence):
            call()
    (tmp_path / "partition.json").write_text('{"dataset": "x"}')
    with pytest.raises(UserError, match="'rule' is missing; make the shards again"):
        read_shard(tmp_path / "m.jsonl")
