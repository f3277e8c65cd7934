"""Checks finer strides, windows and scales against networks whose answer can be written down."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from common.errors import UserError
from common.models.dense import Dense
from common.settings.unsupervised import Model

OWN = 8


def image(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def cells(x: torch.Tensor) -> torch.Tensor:
    """Patches that tile the input: the mean of each."""
    return F.avg_pool2d(x, OWN)


def corners(x: torch.Tensor) -> torch.Tensor:
    """Features on pixels 0, 8, 16, ...: the pixels themselves."""
    return x[:, :, ::OWN, ::OWN]


def of(own: int = OWN, corner: bool = False, **settings: Any) -> Dense:
    return Dense.of(Model(**{"height": 32, "width": 48, **settings}), own, corner)


def test_default_is_one_pass_over_the_image_as_it_is() -> None:
    x, seen = image(32, 48), []
    found = of().features(lambda part: seen.append(part) or cells(part), x)  # type: ignore[func-returns-value]
    assert of().plain and len(seen) == 1 and seen[0] is x and torch.equal(found, cells(x))


@pytest.mark.parametrize("stride", [2, 4])
def test_finer_stride_of_patches_is_centered_in_the_finer_cells(stride: int) -> None:
    x, rim = image(32, 48), (OWN - stride) // 2
    found = of(stride=stride).features(cells, x)
    expected = F.avg_pool2d(F.pad(x, [rim] * 4, mode="replicate"), OWN, stride)
    torch.testing.assert_close(found, expected)
    assert found.shape[2:] == (32 // stride, 48 // stride)


def test_finer_stride_of_corners_is_exact() -> None:
    x = image(33, 49)
    found = of(corner=True, height=33, width=49, stride=2).features(corners, x)
    assert torch.equal(found, x[:, :, ::2, ::2])


@pytest.mark.parametrize(("corner", "extract"), [(False, cells), (True, corners)])
def test_windows_of_a_local_network_change_nothing(corner: bool, extract: Any) -> None:
    x = image(32 + corner, 48 + corner)
    dense = of(corner=corner, height=32 + corner, width=48 + corner, window=24)
    torch.testing.assert_close(dense.features(extract, x), extract(x))


def test_windows_overlap_by_half_and_are_averaged() -> None:
    sizes: list[tuple[int, ...]] = []

    def number(x: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(x.shape[2:]))
        return torch.full_like(cells(x), float(len(sizes)))

    found = of(window=32).features(number, image(32, 48))
    assert sizes == [(32, 32), (32, 32)]
    assert found[0, 0, 0].tolist() == [1, 1, 1.5, 1.5, 2, 2]


def test_scales_are_averaged_on_the_grid_of_the_image() -> None:
    x = image(32, 48)
    assert torch.equal(of(scales="1,1").features(cells, x), cells(x))
    flat = torch.ones(1, 3, 32, 48)
    torch.testing.assert_close(of(scales="0.5,1,2", stride=4).features(cells, flat), torch.ones(1, 3, 8, 12))
    sides = []
    of(scales="0.5,2").features(lambda part: sides.append(part.shape[3]) or cells(part), x)  # type: ignore[func-returns-value]
    assert sides == [24, 96]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stride": 5}, r"model.stride is 5.*1, 2, 4, 8"),
        ({"window": 9}, r"model.window is 9.* 16 or more"),
        ({"corner": True, "stride": 4}, r"8 n \+ 1 pixels.*32 x 48"),
    ],
)
def test_settings_that_do_not_fit_the_network_say_what_would(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        of(**settings)


@pytest.mark.parametrize("settings", [{"scales": "1,x"}, {"scales": ""}, {"scales": "0"}, {"blocks": "last"}])
def test_lists_that_are_none_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="separated by commas"):
        Model(**settings)
