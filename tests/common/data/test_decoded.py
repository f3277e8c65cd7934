"""Do decoded images that stay over rounds, and processes that read them, give the same pixels as a thread does?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import data_loader
from common.data.classes import load_table
from common.data.data_loader import ImageBatch, ImageDataset
from common.data.decoded import DecodedCache
from common.data.manifest import Entry, Shard
from common.errors import UserError
from common.settings.network import Transforms

BUSY = Transforms(
    crop="random", height=32, width=40, scale_min=0.5, scale_max=2.0, flip=0.5, jitter=0.4, rotation=20
)
ROOM = 1 << 20


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    rng = np.random.default_rng(0)
    for index in range(7):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
        Image.fromarray(rng.integers(0, 8, (40, 50), dtype=np.uint8)).save(tmp_path / f"l{index}.png")
    entries = tuple(Entry(f"{index}.png", f"l{index}.png") for index in range(7))
    return Shard("site-0", tmp_path / "site-0.jsonl", tmp_path, entries, load_table("synthetic"))


def seen(shard: Shard, labels: bool = True, **given: Any) -> list[ImageBatch]:
    return list(ImageDataset(shard, BUSY, (3, "site-0"), labels, shard.classes, **given).batches(4, 3))


def same(one: ImageBatch, other: ImageBatch) -> bool:
    assert one.labels is not None and other.labels is not None
    return (
        one.indices == other.indices
        and torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
    )


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    decoded: list[int] = []
    real = data_loader.entry_pair
    monkeypatch.setattr(data_loader, "entry_pair", lambda s, i, t: (decoded.append(i), real(s, i, t))[1])
    return decoded


@pytest.mark.parametrize("readers", [1, 2])
def test_processes_read_the_same_pixels(shard: Shard, tmp_path: Path, readers: int) -> None:
    expected = seen(shard)
    cache = DecodedCache(tmp_path / "decoded", ROOM)
    for _ in range(2):
        assert all(map(same, seen(shard, readers=readers, decoded=cache), expected))
    assert len(list((tmp_path / "decoded").iterdir())) == 7


def test_a_fault_in_a_reader_is_said_as_ever(shard: Shard) -> None:
    (shard.root / "4.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"4\.png is no picture that can be read") as plain:
        seen(shard)
    with pytest.raises(UserError) as found:
        seen(shard, readers=2)
    assert str(found.value) == str(plain.value)


def test_no_image_is_decoded_twice_over_rounds(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = seen(shard)
    decoded = counted(monkeypatch)
    for _ in range(2):  # each with a cache and a memory of its own, as processes of a deployment have
        found = seen(shard, decoded=DecodedCache(tmp_path / "decoded", ROOM), memory=0)
        assert all(map(same, found, expected))
    assert sorted(decoded) == list(range(7))


def test_what_changed_or_was_damaged_is_decoded_anew(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "decoded"
    seen(shard, decoded=DecodedCache(folder, ROOM))
    decoded = counted(monkeypatch)
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(shard.root / "2.png")
    os.utime(shard.root / "2.png", (1, 1))
    victim = sorted(folder.iterdir())[0]
    damaged = bytearray(victim.read_bytes())
    damaged[-1] ^= 1
    victim.write_bytes(bytes(damaged))
    expected = seen(shard)
    decoded.clear()
    assert all(map(same, seen(shard, decoded=DecodedCache(folder, ROOM), memory=0), expected))
    assert (2 in decoded and 1 <= len(set(decoded) - {2}) <= 1) or len(set(decoded)) == 1


def test_labels_stay_out_of_a_cache_of_a_task_that_opens_none(shard: Shard, tmp_path: Path) -> None:
    seen(shard, False, decoded=DecodedCache(tmp_path / "decoded", ROOM))
    assert {path.stat().st_size for path in (tmp_path / "decoded").iterdir()} == {48 + 40 * 50 * 3}


def test_a_cache_keeps_its_limit(shard: Shard, tmp_path: Path) -> None:
    folder, size = tmp_path / "decoded", 48 + 40 * 50 * 4
    seen(shard, decoded=DecodedCache(folder, 3 * size))
    kept = {path.name for path in folder.iterdir()}
    assert len(kept) == 3, "the first that came"
    DecodedCache(folder, size)
    assert len(list(folder.iterdir())) == 1
