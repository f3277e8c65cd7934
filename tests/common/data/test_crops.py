"""Is a view exactly its part of the photo, wherever pixels are read?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.check import check_shard, inspect_entry
from common.data.classes import load_table
from common.data.images import cut, entry_image, entry_label, entry_size, view_box
from common.data.manifest import VIEWS, Entry, Shard, pool_shards, read_shard, write_manifest
from common.errors import UserError
from common.evaluation.clusters import seen_image, seen_label
from common.features.cache import open_features
from common.features.store import features_key
from common.models.backbone import prepare_image
from common.settings.unsupervised import Cache, Model

MODEL = Model(weights="random", height=33, width=49)
TABLE = load_table("crackforest")


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """One photo of 10 x 14 pixels with a label, whole and in five views."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (10, 14, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(rng.integers(0, 2, (10, 14), dtype=np.uint8)).save(tmp_path / "l.png")
    entries = [Entry("a.png", "l.png"), *(Entry("a.png", "l.png", None, view) for view in VIEWS)]
    write_manifest(tmp_path / "site-0.jsonl", entries)
    return read_shard(tmp_path / "site-0.jsonl", classes=TABLE)


@pytest.mark.parametrize(
    ("view", "box"),
    [
        (None, (0, 0, 2048, 1024)),
        ("top-left", (0, 0, 1024, 512)),
        ("top-right", (1024, 0, 2048, 512)),
        ("bottom-left", (0, 512, 1024, 1024)),
        ("bottom-right", (1024, 512, 2048, 1024)),
        ("center", (512, 256, 1536, 768)),
    ],
)
def test_boxes_on_a_photo_of_cityscapes(view: str | None, box: tuple[int, ...]) -> None:
    assert view_box(view, 1024, 2048) == box


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 7), (9, 16)])
@pytest.mark.parametrize("view", VIEWS)
def test_boxes_lie_inside_and_are_never_empty(view: str, size: tuple[int, int]) -> None:
    left, top, right, bottom = view_box(view, *size)
    assert 0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]


def test_corners_of_even_sides_tile_the_photo() -> None:
    seen = np.zeros((6, 8), dtype=np.uint8)
    for view in set(VIEWS) - {"center"}:
        left, top, right, bottom = view_box(view, *seen.shape)
        seen[top:bottom, left:right] += 1
    assert (seen == 1).all()


def test_image_label_and_size_agree_with_slices(shard: Shard) -> None:
    whole, label = np.asarray(Image.open(shard.root / "a.png")), np.asarray(Image.open(shard.root / "l.png"))
    rows, columns = slice(5, 10), slice(7, 14)
    index = 1 + list(VIEWS).index("bottom-right")
    assert np.array_equal(entry_image(shard, 0), whole)
    assert np.array_equal(entry_image(shard, index), whole[rows, columns])
    found = entry_label(shard, index, TABLE)
    assert found is not None and np.array_equal(found, label[rows, columns])
    assert (entry_size(shard, 0), entry_size(shard, index)) == ((10, 14), (5, 7))
    assert np.array_equal(seen_image(shard, index, MODEL), whole[rows, columns])
    seen = seen_label(shard, index, MODEL)
    assert seen is not None and np.array_equal(seen, label[rows, columns])


def test_checks_count_the_labels_of_the_view_but_compare_whole_files(shard: Shard) -> None:
    label = np.asarray(Image.open(shard.root / "l.png"))
    counts = inspect_entry(shard, 1, True, TABLE)
    assert counts is not None and counts.tolist() == np.bincount(label[:5, :7].ravel(), minlength=2).tolist()
    Image.fromarray(np.zeros((11, 15), np.uint8)).save(shard.root / "l.png")  # halves of both are 5 x 7
    assert all("15 x 11" in fault for fault in check_shard(shard, labels=True))
    assert len(check_shard(shard, labels=True)) == len(shard)


def test_features_are_those_of_the_cut_picture(shard: Shard, tmp_path: Path) -> None:
    features = open_features(shard, MODEL, Cache(dtype="float32"), tmp_path / "cache", device="cpu")
    cuts = [cut(entry_image(shard, 0), entry.view) for entry in shard.entries]
    for i, pixels in enumerate(cuts):
        Image.fromarray(pixels).save(tmp_path / f"cut-{i}.png")
    write_manifest(tmp_path / "cuts.jsonl", [Entry(f"cut-{i}.png") for i in range(len(cuts))])
    files = read_shard(tmp_path / "cuts.jsonl")
    expected = open_features(files, MODEL, Cache(dtype="float32"), tmp_path / "cache", device="cpu")
    everything = list(range(len(shard)))
    assert torch.equal(features.batch(everything), expected.batch(everything))
    assert prepare_image(cuts[1], MODEL).shape == (3, 33, 49)


def test_a_view_has_a_cache_of_its_own(shard: Shard) -> None:
    def key(view: str | None) -> str:
        one = Shard("s", shard.path, shard.root, (Entry("a.png", None, None, view),))
        return features_key(one, MODEL, Cache(), 0, torch.device("cpu")).images

    assert len({key(view) for view in (None, *VIEWS)}) == 6


def test_manifests_keep_views_apart_and_refuse_unknown_ones(shard: Shard, tmp_path: Path) -> None:
    assert len(shard) == 6 and shard.entries[5].view == "center"
    assert pool_shards([shard, shard], "pooled").entries == shard.entries
    path = tmp_path / "bad.jsonl"
    path.write_text('{"image": "a.png", "view": "left"}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl line 1: 'view' is 'left': expected one of top-left, "):
        read_shard(path)
    path.write_text('{"image": "a.png", "view": "center"}\n' * 2)
    with pytest.raises(UserError, match=r"line 2 names the image 'a\.png' of line 1 again"):
        read_shard(path)
