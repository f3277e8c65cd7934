"""Input sizes that follow the images: sides that a backbone takes, and a fixed budget of pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.manifest import Entry, Shard
from common.models.input_size import fitted_model, fitted_to
from common.settings.load import load_config


@pytest.mark.parametrize(
    ("backbone", "unit", "more"),
    [
        ("vit_base_patch16_clip_quickgelu_224", 16, 0),
        ("vit_small_patch14_dinov2", 14, 0),
        ("clip_vitb16_int8", 16, 0),
        ("mobilenet_v2", 16, 1),
        ("efficientnet_lite0", 32, 0),
    ],
)
@pytest.mark.parametrize("aspect", [0.5, 0.75, 1.0, 2.0])
def test_sides_fit_the_backbone_the_aspect_and_the_budget(
    backbone: str, unit: int, more: int, aspect: float
) -> None:
    model = load_config({"model.backbone": backbone, "model.pixels": 170_000}).model
    found = fitted_model(model, aspect)
    assert found.height % unit == found.width % unit == more
    assert found.height * found.width == pytest.approx(170_000, rel=0.1)
    assert found.height / found.width == pytest.approx(aspect, rel=0.1)
    assert fitted_model(found, 2.0) == found  # a size that was found stays


def test_a_shard_gives_its_median_aspect(tmp_path: Path) -> None:
    for index, size in enumerate([(60, 30), (60, 30), (30, 60)]):  # width, height
        Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(tmp_path / f"{index}.png")
    entries = tuple(Entry(image=f"{index}.png") for index in range(3))
    shard = Shard("some", tmp_path / "some.jsonl", tmp_path, entries)
    config = load_config({"model.backbone": "vit_tiny_patch16_224", "model.pixels": 64 * 128})
    model = fitted_to(config, shard).model
    assert (model.height, model.width) == (64, 128)
    fixed = load_config({})
    assert fitted_to(fixed, shard) is fixed
