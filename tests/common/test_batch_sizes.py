"""Are images that cannot be stacked found before anything is trained?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.batch_sizes import check_batch_sizes
from common.config_network import Transforms
from common.data.manifest import Entry, Shard
from common.errors import UserError


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
