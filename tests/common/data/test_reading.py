"""Is a picture of another size than its label map refused, or resized to it where the data set says so?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.check import check_shard
from common.data.classes import load_table
from common.data.images import entry_pair, read_image
from common.data.manifest import Entry, Shard, pool_shards, read_shard, write_manifest
from common.errors import UserError

TABLE = load_table("gta5-19")


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """A left-dark, right-bright picture of 20 x 40 pixels; label maps of 20 x 40 and 10 x 20, road and sky."""
    picture = np.zeros((20, 40, 3), dtype=np.uint8)
    picture[:, 20:] = 200
    Image.fromarray(picture).save(tmp_path / "a.png")
    for name, (height, width) in {"same": (20, 40), "half": (10, 20)}.items():
        ids = np.full((height, width), 7, dtype=np.uint8)
        ids[:, width // 2 :] = 23
        coded = Image.fromarray(ids, mode="P")
        coded.putpalette([value % 256 for value in range(768)])
        coded.save(tmp_path / f"{name}.png")
    entries = (Entry("a.png", "same.png"), Entry("a.png", "half.png"), Entry("a.png"))
    return Shard("s", tmp_path / "s.jsonl", tmp_path, entries, TABLE)


def test_a_pair_of_one_size_is_left_alone(shard: Shard) -> None:
    for repair in (False, True):
        pixels, ids = entry_pair(replace(shard, repair_sizes=repair), 0, TABLE)
        assert np.array_equal(pixels, read_image(shard.root / "a.png"))
        assert ids[:, :20].tolist() == [[0] * 20] * 20 and ids[:, 20:].tolist() == [[10] * 20] * 20


def test_the_picture_takes_the_size_of_its_label_map_never_the_reverse(shard: Shard) -> None:
    pixels, ids = entry_pair(replace(shard, repair_sizes=True), 1, TABLE)
    assert pixels.shape == (10, 20, 3) and ids.shape == (10, 20)
    assert set(np.unique(ids).tolist()) == {0, 10}, "indices of the palette, not its colours, not mixtures"
    assert (pixels[:, :9] == 0).all() and (pixels[:, 11:] == 200).all(), "resized, neither cut nor shifted"


def test_without_repair_two_sizes_are_refused(shard: Shard) -> None:
    with pytest.raises(UserError, match=r"is 40 x 20 but its label map .*half.png is 20 x 10 pixels"):
        entry_pair(shard, 1, TABLE)
    assert len(check_shard(shard, labels=True)) == 2
    assert len(check_shard(replace(shard, repair_sizes=True), labels=True)) == 1, "the entry without a label"


def test_views_are_cut_from_the_repaired_pair(shard: Shard) -> None:
    entries = tuple(replace(entry, view="bottom-right") for entry in shard.entries)
    pixels, ids = entry_pair(replace(shard, entries=entries, repair_sizes=True), 1, TABLE)
    assert pixels.shape == (5, 10, 3) and ids.tolist() == [[10] * 10] * 5


def test_an_entry_without_a_label_is_no_pair(shard: Shard) -> None:
    with pytest.raises(UserError, match=r"a.png has no label in .*s.jsonl"):
        entry_pair(shard, 2, TABLE)


def test_partition_json_says_whether_sizes_are_repaired(shard: Shard) -> None:
    write_manifest(shard.path, shard.entries[:1])
    assert not read_shard(shard.path).repair_sizes
    record = {"dataset": "gta5", "rule": "iid", "seed": 0, "root": ".", "sites": {"s": 1}, "classes": None}
    for setting in (True, False):
        record["settings"] = {"repair_sizes": setting}
        (shard.root / "partition.json").write_text(json.dumps(record))
        found = read_shard(shard.path)
        assert found.repair_sizes is setting and pool_shards([found], "all").repair_sizes is setting
