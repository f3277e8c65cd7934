"""Is the head the published one, and are its draws the caller's?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.models.head import (
    SegmentationHead,
    build_head,
    channel_mask,
    init_centroids,
    load_numpy,
    state_to_numpy,
)
from common.settings.unsupervised import Model


def test_has_the_published_number_of_parameters() -> None:
    head = build_head(384, Model(dim=70, nonlinear=True), seed=0)
    assert sum(parameter.numel() for parameter in head.parameters()) == 201_740
    linear = build_head(384, Model(dim=70, nonlinear=False), seed=0)
    assert sum(parameter.numel() for parameter in linear.parameters()) == 26_950
    assert {name.split(".")[0] for name in head.state_dict()} == {"linear", "nonlinear"}


def test_is_the_formula_patch_by_patch() -> None:
    head = build_head(5, Model(dim=3, nonlinear=True), seed=1).eval()
    features = torch.randn(2, 5, 2, 4, generator=torch.Generator().manual_seed(0))
    code = head(features)
    arrays = {name: torch.from_numpy(value) for name, value in state_to_numpy(head).items()}
    for image, row, column in np.ndindex(2, 2, 4):
        f = features[image, :, row, column]
        hidden = (arrays["nonlinear.0.weight"] @ f + arrays["nonlinear.0.bias"]).clamp(min=0)
        expected = arrays["linear.weight"] @ f + arrays["linear.bias"]
        expected = expected + arrays["nonlinear.2.weight"] @ hidden + arrays["nonlinear.2.bias"]
        torch.testing.assert_close(code[image, :, row, column], expected)


def test_starts_within_the_bounds_of_a_convolution_and_follows_the_seed() -> None:
    one, again, other = (
        state_to_numpy(build_head(100, Model(dim=70, nonlinear=True), seed=s)) for s in (0, 0, 1)
    )
    for name, value in one.items():
        np.testing.assert_array_equal(value, again[name])
        assert not np.array_equal(value, other[name])
        assert 0.08 < np.abs(value).max() <= 0.1  # 1 / sqrt(100 inputs)


def test_dropout_takes_whole_channels_and_keeps_the_mean() -> None:
    mask = channel_mask(200, 50, 0.1, torch.Generator().manual_seed(0))
    assert mask is not None
    assert mask.shape == (200, 1, 50)
    values = set(np.unique(mask.numpy()).tolist())
    assert values == {0.0, float(np.float32(1) / np.float32(0.9))}
    assert float(mask.mean()) == pytest.approx(1, abs=0.01)


def test_the_two_branches_drop_independently_and_eval_drops_nothing() -> None:
    head = SegmentationHead(64, dropout=0.5)
    first, second = head.draw_masks(4, torch.Generator().manual_seed(0))
    assert first is not None and second is not None
    assert not torch.equal(first, second)
    assert head.eval().draw_masks(4, None) == (None, None)
    assert SegmentationHead(8, dropout=0.0).draw_masks(2, None) == (None, None)


def test_training_draws_come_from_the_callers_generator() -> None:
    head = build_head(16, Model(dim=70, nonlinear=True), seed=0).train()
    features = torch.randn(2, 16, 3, 3)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b = (head(features, torch.Generator().manual_seed(7)) for _ in range(2))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="explicit generator"):
        head(features)


def test_state_goes_to_arrays_and_back_in_either_precision() -> None:
    source, target = (build_head(6, Model(dim=4, nonlinear=True), seed=s) for s in (0, 1))
    arrays = state_to_numpy(source)
    load_numpy(target, {name: value.astype(np.float64) for name, value in arrays.items()})
    for name, value in state_to_numpy(target).items():
        np.testing.assert_array_equal(value, arrays[name])
    arrays["linear.bias"][:] = 9  # a copy: the module does not notice
    assert float(source.linear.bias.detach().max()) < 1


@pytest.mark.parametrize("change", ["missing", "shape", "surplus"])
def test_a_head_of_another_model_is_refused(change: str) -> None:
    head = build_head(6, Model(dim=4, nonlinear=True), seed=0)
    arrays = state_to_numpy(head)
    if change == "missing":
        del arrays["linear.bias"]
    elif change == "shape":
        arrays["linear.bias"] = np.zeros(3, np.float32)
    else:
        arrays["backbone.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"backbone\.weight|linear\.bias"):
        load_numpy(head, arrays)
    with pytest.raises(ValueError, match="expects features"):
        head(torch.zeros(1, 7, 2, 2))


def test_centroids_start_as_a_standard_normal_draw() -> None:
    draw = init_centroids(100, 70, 3)
    assert draw.dtype == np.float32 and draw.shape == (100, 70)
    assert abs(draw.mean()) < 0.05 and draw.std() == pytest.approx(1, abs=0.05)
    np.testing.assert_array_equal(draw, init_centroids(100, 70, 3))
