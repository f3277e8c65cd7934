"""Does every image of a shard reach training, the same each time, with its label or with none opened?"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import data_loader as pictures
from common.data import images
from common.data.classes import ClassTable, load_table
from common.data.data_loader import ImageBatch, ImageDataset
from common.data.images import Bytes
from common.data.manifest import Entry, Shard, read_shard, write_manifest
from common.errors import UserError
from common.settings.network import Transforms

TABLE = load_table("camvid")
PLAIN = Transforms(crop="none")
BUSY = Transforms(height=32, width=40, scale_min=0.7, scale_max=1.5, rotation=10, flip=0.5, jitter=0.3)
PARTS = (7, "site-2", 3)


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """Ten images of 40 x 50 pixels; image i has the value 20 i and the raw labels i and (camvid's void) 11."""
    entries = []
    for i in range(10):
        Image.fromarray(np.full((40, 50, 3), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
        label = np.full((40, 50), i, np.uint8)
        label[0] = 11
        Image.fromarray(label).save(tmp_path / f"l{i}.png")
        entries.append(Entry(f"{i}.png", f"l{i}.png"))
    write_manifest(tmp_path / "site-2.jsonl", entries)
    return read_shard(tmp_path / "site-2.jsonl", classes=TABLE)


def make(shard: Shard, transforms: Transforms = PLAIN, labels: bool = True, **given: Any) -> ImageDataset:
    return ImageDataset(
        shard, transforms, given.pop("parts", PARTS), labels, TABLE if labels else None, **given
    )


def same(one: ImageBatch, other: ImageBatch) -> bool:
    return (
        one.indices == other.indices
        and torch.equal(one.images, other.images)
        and (one.labels is None) == (other.labels is None)
        and (one.labels is None or other.labels is None or torch.equal(one.labels, other.labels))
    )


def epoch_batches(source: ImageDataset, epoch: int, batch: int) -> Iterator[ImageBatch]:
    """Yield every image of an epoch once."""
    return source.batches(-(-len(source) // batch), batch, first_epoch=epoch)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch", [1, 3, 10, 16])
def test_every_image_comes_once_in_every_epoch(shard: Shard, batch: int, workers: int) -> None:
    """Also the last of a shard that the batch does not divide, and all of one smaller than the batch."""
    source = make(shard, workers=workers)
    for epoch in range(3):
        batches = list(epoch_batches(source, epoch, batch))
        assert len(batches) == -(-10 // batch)
        assert sorted(i for one in batches for i in one.indices) == list(range(10))
        assert all(len(one.indices) == batch for one in batches[:-2])
        assert (
            {len(one.indices) for one in batches} <= {1}
            if batch == 1
            else all(1 < len(one.indices) <= batch for one in batches)
        )


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [
        (9, 8, [7, 2]),
        (9, 4, [4, 3, 2]),
        (10, 3, [3, 3, 2, 2]),
        (7, 2, [2, 2, 2, 2]),
        (1, 8, [1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_no_image_is_alone_in_the_last_batch(shard: Shard, count: int, batch: int, sizes: list[int]) -> None:
    source = make(replace(shard, entries=shard.entries[:count]))
    epochs = [list(epoch_batches(source, epoch, batch)) for epoch in range(2)]
    for epoch in epochs:
        assert [len(one.indices) for one in epoch] == sizes
        seen = [index for one in epoch for index in one.indices]
        assert sorted(set(seen)) == list(range(count))
        assert len(seen) - count == (batch == 2 and count % 2), "at two a batch the first image comes again"
    assert len({tuple(one.indices) for epoch in epochs for one in epoch}) > 1 or count == 1


def test_orders_differ_between_epochs_rounds_and_sites(shard: Shard) -> None:
    def order(epoch: int, **given: Any) -> tuple[int, ...]:
        (whole,) = epoch_batches(make(shard, **given), epoch, 10)
        return tuple(whole.indices)

    orders = [order(epoch) for epoch in range(3)]
    orders += [order(0, parts=parts) for parts in ((7, "site-2", 4), (7, "site-1", 3))]
    assert len(set(orders)) == 5 and order(0) == orders[0]


def test_a_batch_holds_what_the_files_hold(shard: Shard) -> None:
    batch = next(epoch_batches(make(shard), 0, 4))
    assert batch.images.dtype == torch.float32 and batch.images.shape == (4, 3, 40, 50)
    assert batch.labels is not None and batch.labels.dtype == torch.int64
    assert batch.labels.shape == (4, 40, 50) and batch.valid is None
    for place, index in enumerate(batch.indices):
        torch.testing.assert_close(batch.images[place], torch.full((3, 40, 50), 20 * index / 255))
        assert batch.labels[place, 1:].unique().tolist() == [index]
        assert batch.labels[place, 0].unique().tolist() == [255]


def test_steps_go_on_through_epochs(shard: Shard) -> None:
    source = make(shard, BUSY)
    expected = [one for epoch in (5, 6, 7) for one in epoch_batches(source, epoch, 4)][:8]
    found = list(source.batches(8, 4, first_epoch=5))
    assert len(found) == 8 and all(map(same, found, expected))
    assert list(source.batches(0, 4)) == []


@pytest.mark.parametrize("given", [{"workers": 1}, {"workers": 4}, {"memory": 0}, {"memory": 20_000}])
def test_neither_threads_nor_memory_change_a_pixel(shard: Shard, given: dict[str, Any]) -> None:
    expected = list(make(shard, BUSY, workers=0).batches(6, 3))
    torch.manual_seed(len(given))
    found = list(make(shard, BUSY, **given).batches(6, 3))
    assert len(found) == 6 and all(map(same, found, expected))


def test_what_happens_to_an_image_does_not_depend_on_its_batch(shard: Shard) -> None:
    source = make(shard, BUSY)
    small = {b.indices[0]: b.images[0] for b in epoch_batches(source, 1, 1)}
    for batch in epoch_batches(source, 1, 4):
        assert all(torch.equal(image, small[i]) for i, image in zip(batch.indices, batch.images, strict=True))
    other = {b.indices[0]: b.images[0] for b in epoch_batches(source, 2, 1)}
    assert not any(torch.equal(small[i], other[i]) for i in range(1, 10))


def test_images_of_one_epoch_are_changed_each_in_its_own_way(shard: Shard) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for i in range(10):
        Image.fromarray(noise).save(shard.root / f"{i}.png")
    (batch,) = epoch_batches(make(shard, BUSY), 0, 10)
    assert len({image.numpy().tobytes() for image in batch.images}) == 10


def _closed(*_: object) -> Bytes:
    raise AssertionError("a label was opened")


@pytest.mark.parametrize("workers", [0, 2])
def test_closed_labels_are_never_opened(shard: Shard, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in shard.root.glob("l*.png"):
        path.write_text("nobody can read this")
    monkeypatch.setattr(images, "read_label", _closed)
    monkeypatch.setattr(images, "read_raw_label", _closed)
    source = make(shard, BUSY, labels=False, workers=workers)
    assert all(entry.label is None for entry in source.shard.entries) and not source.shard.labelled
    batches = list(source.batches(5, 4))
    assert all(batch.labels is None for batch in batches)
    with pytest.raises(PermissionError, match="the labels of site-2 are closed"):
        source.label(0)
    with pytest.raises(AssertionError, match="a label was opened"):  # by the doors that are shut above
        next(epoch_batches(make(shard, BUSY), 0, 1))


def test_closed_labels_need_not_exist_and_change_no_image(shard: Shard) -> None:
    expected = list(epoch_batches(make(shard, BUSY), 0, 4))
    for path in shard.root.glob("l*.png"):
        path.unlink()
    bare = replace(shard, entries=tuple(replace(entry, label=None) for entry in shard.entries))
    for source in (make(shard, BUSY, labels=False), make(bare, BUSY, labels=False)):
        for batch, twin in zip(epoch_batches(source, 0, 4), expected, strict=True):
            assert torch.equal(batch.images, twin.images)


def test_without_labels_a_mask_says_where_the_image_is(shard: Shard) -> None:
    wide = Transforms(height=64, width=50, crop="random")
    batch = next(epoch_batches(make(shard, wide, labels=False), 0, 10))
    assert batch.valid is not None and batch.valid.dtype == torch.bool and batch.valid.shape == (10, 64, 50)
    assert batch.valid.sum(dim=(1, 2)).tolist() == [40 * 50] * 10
    assert bool((batch.images.movedim(1, -1)[~batch.valid] == 0).all())
    shown = batch.images[:, 0][batch.valid].view(10, -1)
    assert shown[:, 0].mul(255).round().tolist() == [20.0 * i for i in batch.indices]


def test_labels_that_are_missing_are_named_before_training(shard: Shard) -> None:
    bare = replace(shard, entries=(*shard.entries[:3], Entry("3.png")))
    with pytest.raises(UserError, match=r"1 of 4 images of .*site-2\.jsonl have no label"):
        make(bare)
    with pytest.raises(UserError, match=r"labels of .*site-2\.jsonl have no class table"):
        ImageDataset(shard, PLAIN, PARTS, True, None)


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_of_another_size_are_named(shard: Shard, workers: int) -> None:
    Image.fromarray(np.zeros((41, 50), np.uint8)).save(shard.root / "l4.png")
    with pytest.raises(UserError, match=r"4\.png is 50 x 40 but its label map .*l4\.png is 50 x 41 pixels"):
        list(epoch_batches(make(shard, workers=workers), 0, 4))


def test_a_data_set_may_ask_for_images_of_the_size_of_their_labels(shard: Shard) -> None:
    Image.fromarray(np.full((20, 25), 4, np.uint8)).save(shard.root / "l4.png")
    source = make(replace(shard, repair_sizes=True))
    sizes = {
        batch.indices[0]: (batch.images.shape[2:], None if batch.labels is None else batch.labels.shape[1:])
        for batch in epoch_batches(source, 0, 1)
    }
    assert sizes[4] == ((20, 25), (20, 25)) and sizes[5] == ((40, 50), (40, 50))


def test_unreadable_images_are_named_from_a_worker_too(shard: Shard) -> None:
    (shard.root / "6.png").write_text("no picture")
    with pytest.raises(UserError, match=r"6\.png is no picture"):
        list(make(shard, workers=2).batches(20, 4))


def test_images_of_several_sizes_need_a_crop_or_a_batch_of_one(shard: Shard) -> None:
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(shard.root / "4.png")
    Image.fromarray(np.zeros((30, 50), np.uint8)).save(shard.root / "l4.png")
    with pytest.raises(UserError, match=r"differ in size.*50 x [34]0 pixels and .*set transforms\.crop"):
        list(epoch_batches(make(shard), 0, 10))
    assert len(list(epoch_batches(make(shard), 0, 1))) == 10
    cropped = Transforms(height=32, width=32)
    assert next(epoch_batches(make(shard, cropped), 0, 10)).images.shape == (10, 3, 32, 32)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Records which image was decoded, each time."""
    seen: list[int] = []

    def image(shard: Shard, index: int) -> Bytes:
        seen.append(index)
        return images.entry_image(shard, index)

    def pair(shard: Shard, index: int, table: ClassTable) -> tuple[Bytes, Bytes]:
        seen.append(index)
        return images.entry_pair(shard, index, table)

    monkeypatch.setattr(pictures, "entry_image", image)
    monkeypatch.setattr(pictures, "entry_pair", pair)
    yield seen


@pytest.mark.parametrize(
    ("images_kept", "labels", "expected"),
    [(10, True, 10), (10, False, 10), (4, True, 4 + 3 * 6), (0, True, 30)],
)
def test_what_fits_into_memory_is_decoded_once(
    shard: Shard, decoded: list[int], images_kept: int, labels: bool, expected: int
) -> None:
    memory = images_kept * 40 * 50 * (4 if labels else 3)
    source = make(shard, labels=labels, memory=memory, workers=0)
    for epoch in range(3):
        list(epoch_batches(source, epoch, 4))
    assert len(decoded) == expected


def test_a_reader_that_stops_leaves_no_thread_behind(shard: Shard) -> None:
    stream = make(shard, BUSY, workers=3).batches(1000, 2)
    next(stream)
    assert any(thread.name.startswith("pictures") for thread in threading.enumerate())
    assert isinstance(stream, Iterator)
    stream.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("pictures") for thread in threading.enumerate())


def test_restyling_comes_first_and_has_draws_of_its_own(shard: Shard) -> None:
    drawn: list[float] = []

    def restyle(image: Bytes, generator: torch.Generator) -> Bytes:
        assert image.shape == (40, 50, 3) and image.dtype == np.uint8
        drawn.append(float(torch.rand(1, generator=generator)))
        return np.full_like(image, 90)

    crop = Transforms(height=64, width=50)
    plain = list(epoch_batches(make(shard, crop, workers=0), 0, 5))
    for batch, twin in zip(
        epoch_batches(make(shard, crop, restyle=restyle, workers=0), 0, 5), plain, strict=True
    ):
        assert batch.labels is not None and twin.labels is not None
        assert torch.equal(batch.labels, twin.labels)  # so the crops are the same
        assert batch.images.mul(255).round().unique().tolist() == [0, 90]
    assert len(set(drawn)) == 10
    assert make(shard, restyle=restyle).image(4).max() == 80  # and what is in memory stays as it was


def test_views_of_a_photo_are_cut(shard: Shard) -> None:
    entry = Entry("3.png", "l3.png", None, "top-left")
    batch = next(epoch_batches(make(replace(shard, entries=(entry,))), 0, 1))
    assert batch.labels is not None and batch.images.shape == (1, 3, 20, 25)
    assert batch.labels[0, 0].unique().tolist() == [255] and batch.labels[0, 1:].unique().tolist() == [3]


def test_single_pictures_can_be_looked_at(shard: Shard) -> None:
    source = make(shard)
    assert len(source) == 10 and source.image(2).max() == 40
    assert source.label(2)[0, 0] == 255 and source.label(2)[1, 0] == 2


def test_a_batch_needs_an_image(shard: Shard) -> None:
    with pytest.raises(ValueError, match="a batch of 0 images"):
        next(make(shard).batches(1, 0))


@pytest.mark.gpu
def test_batches_arrive_on_the_device(shard: Shard) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    expected = list(make(shard, BUSY).batches(6, 3))
    for batch, twin in zip(make(shard, BUSY, device="cuda").batches(6, 3), expected, strict=True):
        assert batch.images.is_cuda and batch.labels is not None and batch.labels.is_cuda
        moved = ImageBatch(batch.images.cpu(), batch.labels.cpu(), batch.indices)
        torch.testing.assert_close(moved.images, twin.images)
        assert same(moved, replace(twin, images=moved.images))


@pytest.mark.shared
def test_real_frames_keep_their_labels(shared_data: Path) -> None:
    names = (shared_data / "camvid" / "splits" / "dev.txt").read_text().split()[:6]
    entries = tuple(Entry(f"dev/images/{name}.jpg", f"dev/labels/{name}.png") for name in names)
    root = shared_data / "camvid"
    shard = Shard("dev", root / "dev.jsonl", root, entries, TABLE)
    settings = Transforms(height=256, width=464, scale_min=0.7, scale_max=2.0, rotation=5, flip=0.5)
    labels = _labels_at(shard, settings, TABLE)
    known = (labels != 255).float().mean()
    assert known > 0.4 and labels[labels != 255].max() < 11
    sky, road = (labels == 0).float().mean((0, 2)), (labels == 3).float().mean((0, 2))
    rows = torch.arange(256) / 256
    assert (sky * rows).sum() / sky.sum() < 0.45 < (road * rows).sum() / road.sum()


def _labels_at(shard: Shard, settings: Transforms, table: ClassTable) -> torch.Tensor:
    batches = list(
        ImageDataset(shard, settings, (0, shard.name, 0), True, table).batches(-(-len(shard) // 3), 3)
    )
    assert all(batch.images.shape[1:] == (3, 256, 464) for batch in batches)
    return torch.cat([batch.labels for batch in batches if batch.labels is not None])


def test_the_plain_form_is_the_same_cut_in_its_own_colours(shard: Shard) -> None:
    """What the plain form shows is what comes where colours are never changed."""
    still = Transforms(**BUSY.model_dump(exclude={"jitter"}))
    changed = next(epoch_batches(make(shard, BUSY, plain=True), 0, 10))
    untouched = next(epoch_batches(make(shard, still), 0, 10))
    assert changed.plain is not None
    assert torch.equal(changed.plain, untouched.images)
    assert not torch.equal(changed.images, changed.plain)
    assert next(epoch_batches(make(shard, BUSY), 0, 10)).plain is None
