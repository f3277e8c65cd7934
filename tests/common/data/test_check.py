"""Does the check of a shard find every fault, and open labels only when asked?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.check import check_shard, inspect_entry
from common.data.classes import load_table
from common.data.manifest import Entry, Shard


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """Five images of 6 x 4 pixels: sound, truncated, mismatched, out of range, without label."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    entries = []
    for name in ("good", "cut", "size", "range", "none"):
        Image.fromarray(noise).save(tmp_path / f"{name}.bmp")
        shape = (6, 4) if name == "size" else (4, 6)
        label = np.full(shape, 12 if name == "range" else 3, dtype=np.uint8)
        Image.fromarray(label).save(tmp_path / f"{name}.png")
        entries.append(Entry(f"{name}.bmp", None if name == "none" else f"{name}.png"))
    (tmp_path / "cut.bmp").write_bytes((tmp_path / "cut.bmp").read_bytes()[:80])
    return Shard("s", tmp_path / "s.jsonl", tmp_path, tuple(entries), load_table("camvid"))


def test_every_fault_gets_one_sentence_in_order(shard: Shard) -> None:
    problems = check_shard(shard, labels=True)
    assert len(problems) == 4
    expected = (
        "cut.bmp is damaged",
        "is 6 x 4 but its label map",
        "holds the value 12",
        "none.bmp has no label",
    )
    for problem, part in zip(problems, expected, strict=True):
        assert part in problem


def test_without_labels_no_label_file_is_opened(shard: Shard, tmp_path: Path) -> None:
    for path in tmp_path.glob("*.png"):
        path.write_text("unreadable")
    assert [p for p in check_shard(shard, labels=False) if "cut.bmp" not in p] == []
    assert len(check_shard(shard, labels=True)) == 5


def test_progress_counts_to_the_end_and_histograms_are_pixels(shard: Shard) -> None:
    seen: list[tuple[int, int]] = []
    check_shard(shard, labels=False, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]
    counts = inspect_entry(shard, 0, True, shard.classes)
    assert counts is not None and counts.tolist() == [0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0]


def test_labels_without_a_class_table_are_a_fault(shard: Shard) -> None:
    unnamed = Shard(shard.name, shard.path, shard.root, shard.entries[:1])
    assert "no class table" in check_shard(unnamed, labels=True)[0]


def test_label_maps_of_ignored_pixels_alone_are_a_fault_of_the_shard(shard: Shard, tmp_path: Path) -> None:
    void = Image.fromarray(np.full((4, 6), 255, dtype=np.uint8))
    void.save(tmp_path / "void.png")
    void.save(tmp_path / "good.png")
    images = (Entry("good.bmp", "good.png"), Entry("size.bmp", "void.png"))
    ignored = replace(shard, entries=images)
    (fault,) = check_shard(ignored, labels=True)
    assert "s.jsonl is ignored by the class table 'camvid'; choose the table" in fault
    assert check_shard(ignored, labels=False) == []
    Image.fromarray(np.array([[255] * 6] * 3 + [[255] * 5 + [3]], dtype=np.uint8)).save(tmp_path / "void.png")
    assert check_shard(ignored, labels=True) == [], "one pixel is enough"
