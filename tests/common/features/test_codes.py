"""Codes that are kept beside the features: the same numbers again, those of the last head alone, and full disks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common.features import codes as module
from common.features.codes import unit_codes
from common.features.source import Features
from common.models.codes import codes_within
from common.models.head import SegmentationHead, build_head
from common.settings.load import load_config

GRID = (3, 4)
CONFIG = load_config({"codes.reach": 40.0, "codes.center": "auto", "model.dim": 5, "model.height": 96})


def features(folder: Path, images: int = 5) -> Features:
    generator = np.random.default_rng(0)
    tokens = np.lib.format.open_memmap(folder / "tokens.npy", "w+", np.float32, (images, 12, 6))
    tokens[:] = generator.standard_normal(tokens.shape)
    colors = generator.random((images, 12, 3)).astype(np.float16)
    return Features(tokens, np.zeros((images, 6), np.float32), GRID, "", colours=colors)


def collected(source: Features, head: SegmentationHead, centered: bool) -> torch.Tensor:
    return torch.cat(list(unit_codes(source, head, CONFIG, centered)))


@pytest.mark.parametrize("centered", [False, True])
def test_kept_codes_are_those_of_the_first_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, centered: bool
) -> None:
    monkeypatch.setattr(module, "_BATCH", 2)
    source, head = features(tmp_path), build_head(6, CONFIG.model, seed=0)
    first = collected(source, head, centered)
    maps = head.project(torch.from_numpy(np.array(source.tokens))).transpose(1, 2).unflatten(2, GRID)
    expected = codes_within(maps, source.colours(range(5)), CONFIG, centered).flatten(2).transpose(1, 2)
    torch.testing.assert_close(
        first.float(), torch.nn.functional.normalize(expected, dim=-1), atol=1e-3, rtol=1e-3
    )
    assert len(list(tmp_path.glob("codes-*.npy"))) == 1
    monkeypatch.setattr(module, "_made", None)  # nothing is made again
    assert torch.equal(collected(source, head, centered), first)


def test_codes_of_another_head_take_their_place_and_both_ways_of_one_stay(tmp_path: Path) -> None:
    source = features(tmp_path)
    first, second = (build_head(6, CONFIG.model, seed=seed) for seed in (0, 1))
    for centered in (False, True):
        collected(source, first, centered)
    assert len(list(tmp_path.glob("codes-*.npy"))) == 2
    old = set(tmp_path.glob("codes-*.npy"))
    collected(source, second, False)
    new = set(tmp_path.glob("codes-*.npy"))
    assert len(new) == 1
    assert not new & old
    assert not list(tmp_path.glob(".codes-*"))


def test_a_disk_that_is_full_costs_speed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, head = features(tmp_path), build_head(6, CONFIG.model, seed=0)
    expected = collected(source, head, False)
    for path in tmp_path.glob("codes-*.npy"):
        path.unlink()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "open_memmap", full)
    assert torch.equal(collected(source, head, False), expected)
    assert not list(tmp_path.glob("*codes-*"))


def test_codes_that_are_not_finite_are_refused_and_not_kept(tmp_path: Path) -> None:
    source, head = features(tmp_path), build_head(6, CONFIG.model, seed=0)
    with torch.no_grad():
        head.linear.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="images 0 to 4"):
        collected(source, head, False)
    assert not list(tmp_path.glob("*codes-*"))
