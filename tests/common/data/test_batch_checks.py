"""Are images that cannot be stacked found before anything is trained?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.check import check_batch_sizes, check_measured, check_single_features
from common.data.manifest import Entry, Shard
from common.errors import UserError
from common.settings.network import Transforms


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """Two pictures of one size and a wider one."""
    for name, width in (("a", 40), ("b", 40), ("c", 44)):
        Image.fromarray(np.zeros((20, width, 3), np.uint8)).save(tmp_path / f"{name}.png")
    entries = tuple(Entry(f"{name}.png") for name in "abc")
    return Shard("site-0", tmp_path / "site-0.jsonl", tmp_path, entries)


@pytest.mark.parametrize(
    ("settings", "batch"),
    [
        ({"crop": "random"}, 2),
        ({"crop": "resized"}, 2),
        ({"crop": "none"}, 1),
        ({"crop": "none", "resize_height": 20, "resize_width": 30}, 2),
        ({"crop": "none", "scale_min": 0.5, "scale_max": 2.0}, 1),
    ],
)
def test_batches_of_one_size_pass(shard: Shard, settings: dict[str, object], batch: int) -> None:
    check_batch_sizes(shard, Transforms.model_validate(settings), batch)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"crop": "none"}, r"c\.png has 44 x 20 pixels and .*a\.png 40 x 20.*source\.batch to 1"),
        ({"crop": "none", "scale_max": 1.5}, r"scale-min is 1 and scale-max 1\.5"),
        (
            {"crop": "none", "scale_max": 1.5, "resize_height": 20, "resize_width": 30},
            r"would differ in size; set transforms\.crop",
        ),
    ],
)
def test_batches_of_several_sizes_are_refused(
    shard: Shard, settings: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        check_batch_sizes(shard, Transforms.model_validate(settings), 2, "source.batch")


CUT = {"height": 32, "width": 32}
LARGER = {"height": 32, "width": 33}


@pytest.mark.parametrize(
    ("settings", "batch", "stride", "fits"),
    [
        (CUT, 1, 32, False),
        (CUT, 2, 32, True),  # three images: the last is not alone
        (CUT, 3, 32, True),
        (CUT, 4, 32, True),
        (CUT, 2, 16, True),
        (LARGER, 2, 32, True),
        ({"crop": "none"}, 1, 32, True),  # 20 x 40 pixels: two features
        ({"crop": "none", "scale_min": 0.5}, 1, 32, False),
        ({"crop": "none", "resize_height": 30, "resize_width": 30}, 1, 32, False),
    ],
)
def test_an_image_alone_in_its_batch_is_more_than_a_feature(
    shard: Shard, settings: dict[str, object], batch: int, stride: int, fits: bool
) -> None:
    transforms = Transforms.model_validate(settings)
    if fits:
        check_single_features(shard, transforms, stride, batch)
    else:
        with pytest.raises(UserError, match=rf"3 images, local\.batch = {batch}.*output stride {stride}"):
            check_single_features(shard, transforms, stride, batch)


def test_the_smallest_image_decides(shard: Shard) -> None:
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(shard.root / "b.png")
    with pytest.raises(UserError, match=r"b\.png would be trained on at 24 x 20 pixels"):
        check_single_features(shard, Transforms(crop="none"), 32, 1)


def test_statistics_of_one_small_image_are_refused(shard: Shard) -> None:
    small = replace(shard, entries=shard.entries[:1])
    with pytest.raises(UserError, match=r"only image of site-0 and 32 x 20 pixels are a single feature"):
        check_measured(small, Transforms(eval_height=20, eval_width=32), 32)
    check_measured(small, Transforms(), 32)  # 40 pixels wide
    with pytest.raises(UserError, match="40 x 20 pixels are a single feature at output stride 64"):
        check_measured(small, Transforms(), 64)
    check_measured(shard, Transforms(eval_height=20, eval_width=32), 32)


def test_images_that_take_the_size_of_their_labels_are_as_large_as_these(shard: Shard) -> None:
    """Of GTA5: images c and a differ, their labels do not; then the other way round."""
    for name in "abc":
        Image.fromarray(np.zeros((20, 40), np.uint8)).save(shard.root / f"{name}-label.png")
    entries = tuple(Entry(f"{name}.png", f"{name}-label.png") for name in "abc")
    repaired = replace(shard, entries=entries, repair_sizes=True)
    check_batch_sizes(repaired, Transforms(crop="none"), 2)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(shard.root / "b-label.png")
    with pytest.raises(UserError, match=r"b\.png has 30 x 20 pixels and .*a\.png 40 x 20"):
        check_batch_sizes(replace(repaired, entries=entries[:2]), Transforms(crop="none"), 2)
    with pytest.raises(UserError, match=r"b\.png would be trained on at 30 x 20 pixels"):
        check_single_features(repaired, Transforms(crop="none"), 32, 1)
    unlabelled = replace(repaired, entries=tuple(Entry(f"{name}.png") for name in "ab"))
    check_batch_sizes(unlabelled, Transforms(crop="none"), 2)


def test_statistics_of_images_of_several_sizes_need_one_to_be_scored_at(shard: Shard) -> None:
    with pytest.raises(
        UserError, match=r"c\.png has 44 x 20 .*, but network\.site-statistics .* set .*eval-height"
    ):
        check_measured(shard, Transforms(), 32)
    check_measured(shard, Transforms(eval_height=20, eval_width=40), 32)
    check_measured(replace(shard, entries=shard.entries[:2]), Transforms(), 32)
