"""Does every pixel get the cluster of its place on the grid?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.models import segmenter as module
from common.models.codes import codes_within
from common.models.head import build_head, state_to_numpy
from common.models.segmenter import Geometry, Segmenter, interpolation
from common.settings.load import load_config
from common.settings.unsupervised import Model

PATCHES = Geometry(64, 96)


@pytest.fixture
def rng() -> Iterator[torch.Generator]:
    yield torch.Generator().manual_seed(5)


def toy(centroids: Tensor, geometry: Geometry = PATCHES, upsample: module.Upsample = "cosines") -> Segmenter:
    return Segmenter(nn.Identity(), centroids, geometry, upsample=upsample)


@pytest.mark.parametrize("size", [(64, 96), (33, 50), (4, 6), (150, 97)])
def test_patches_are_enlarged_as_torch_does_without_aligned_corners(
    size: tuple[int, int], rng: torch.Generator
) -> None:
    maps = torch.randn(2, 3, 4, 6, generator=rng)
    expected = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(toy(torch.eye(3)).resize(maps, size), expected, atol=1e-5, rtol=1e-5)


def test_odd_cnn_input_is_enlarged_with_aligned_corners(rng: torch.Generator) -> None:
    geometry = Geometry.of(Model(backbone="mobilenet_v2", height=65, width=97))
    assert geometry.stride == 16
    maps = torch.randn(1, 2, 5, 7, generator=rng)
    expected = F.interpolate(maps, size=(65, 97), mode="bilinear", align_corners=True)
    torch.testing.assert_close(
        toy(torch.eye(2), geometry).resize(maps, (65, 97)), expected, atol=1e-5, rtol=1e-5
    )


def test_even_cnn_input_keeps_cells_on_their_pixels(rng: torch.Generator) -> None:
    """224 pixels have cells at 0, 16, ..., 208: aligned corners would push the last to pixel 223."""
    maps = torch.randn(1, 1, 14, 14, generator=rng)
    large = toy(torch.eye(1), Geometry(224, 224, 16)).resize(maps, (224, 224))
    torch.testing.assert_close(large[:, :, ::16, ::16], maps)
    torch.testing.assert_close(large[0, 0, 208:, 0], maps[0, 0, 13, 0].expand(16))


@pytest.mark.parametrize("stride", [None, 16])
def test_interpolation_weights_sum_to_one(stride: int | None) -> None:
    weights = interpolation(5, 333, 65, stride)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), np.ones(333), rtol=1e-6)


def test_cosines_by_hand() -> None:
    centroids = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, -1.0]])
    code = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    expected = [0.6, 0.8, -7 / (5 * 2**0.5)]
    found = toy(centroids).logits(code, (2, 2))
    torch.testing.assert_close(found[0, :, 1, 1], torch.tensor(expected))
    assert toy(centroids).labels_of_code(code, (2, 2)).tolist() == [[[1, 1], [1, 1]]]


def test_scale_of_codes_and_centroids_does_not_matter_and_order_of_centroids_only_renames(
    rng: torch.Generator,
) -> None:
    centroids, feats = torch.randn(5, 7, generator=rng), torch.randn(2, 7, 4, 6, generator=rng)
    labels = toy(centroids).labels_of_code(feats, (40, 60))
    scaled = centroids * torch.tensor([[1.0], [9.0], [0.1], [3.0], [2.0]])
    torch.testing.assert_close(
        toy(scaled).logits(feats * 4, (40, 60)), toy(centroids).logits(feats, (40, 60))
    )
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(order[toy(centroids[order]).labels_of_code(feats, (40, 60)).long()], labels.long())


@pytest.mark.parametrize("upsample", ["cosines", "code"])
def test_strips_change_nothing(
    upsample: module.Upsample, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    segmenter = toy(torch.randn(5, 7, generator=rng), upsample=upsample)
    feats = torch.randn(2, 7, 4, 6, generator=rng)
    whole = segmenter.logits(feats, (41, 60)).argmax(dim=1)
    monkeypatch.setattr(module, "STRIP_VALUES", 2000)
    assert torch.equal(segmenter.labels_of_code(segmenter.code(feats), (41, 60)).long(), whole)


def test_enlarging_codes_first_differs_but_agrees_on_the_cells(rng: torch.Generator) -> None:
    centroids, feats = torch.randn(5, 7, generator=rng), torch.randn(1, 7, 5, 7, generator=rng)
    geometry = Geometry(65, 97, 16)
    after = toy(centroids, geometry).logits(feats, (65, 97))
    before = toy(centroids, geometry, "code").logits(feats, (65, 97))
    torch.testing.assert_close(after[..., ::16, ::16], before[..., ::16, ::16], atol=1e-5, rtol=1e-5)
    assert (after - before).abs().max() > 0.05


def test_flip_averaging_treats_both_sides_alike(rng: torch.Generator) -> None:
    segmenter = toy(torch.randn(5, 7, generator=rng))
    feats, mirrored = torch.randn(2, 1, 7, 4, 6, generator=rng)
    one = segmenter.logits(feats, (40, 60), mirrored)
    other = segmenter.logits(mirrored, (40, 60), feats)
    torch.testing.assert_close(one, other.flip(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(segmenter.code(feats, feats.flip(-1)), feats)
    assert (one - segmenter.logits(feats, (40, 60))).abs().max() > 0.1


@pytest.mark.parametrize("width", [65, 80, 70])
def test_mirrored_cells_of_a_cnn_come_to_lie_on_the_cells_of_the_picture(width: int) -> None:
    """Cells 16 pixels apart: those of the mirrored picture start at its other rim, 15 pixels off for 80."""
    cells = -(-width // 16)
    here = 16.0 * torch.arange(cells).expand(1, 1, 3, cells)
    in_the_mirror = width - 1 - here  # where the cells of the mirrored picture lie in the picture
    code = toy(torch.eye(1), Geometry(33, width, 16)).code(here, in_the_mirror)
    torch.testing.assert_close(code[..., 1:], here[..., 1:])  # a ramp stays what it is
    assert code[0, 0, 0, 0] == (width - 1) % 16 / 2  # left of the mirrored cells: the first of them


VIT_SETTINGS = {
    "model.backbone": "vit_tiny_patch16_224",
    "model.height": 64,
    "model.width": 96,
    "model.dim": 6,
}


def travelling(channels: int = 12, groups: list[int] | None = None) -> dict[str, dict[str, np.ndarray]]:
    config = load_config(VIT_SETTINGS)
    head = state_to_numpy(build_head(channels, config.model, seed=3))
    centroids = {"centroids": np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)}
    return {
        "head": head,
        "centroids": centroids | ({} if groups is None else {"groups": np.array(groups)}),
    }


def test_built_from_what_travels_and_never_in_training_mode() -> None:
    config = load_config(VIT_SETTINGS | {"model.dropout": 0.5})
    segmenter = Segmenter.from_groups(travelling(), 12, config).train()
    assert not segmenter.head.training
    assert segmenter.num_clusters == 4
    assert not any(parameter.requires_grad for parameter in segmenter.parameters())
    feats = torch.randn(1, 12, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(segmenter.code(feats), segmenter.head(feats))


def test_joined_centroids_are_one_cluster_by_the_nearest_of_them() -> None:
    config = load_config(VIT_SETTINGS)
    joined = Segmenter.from_groups(travelling(groups=[1, 0, 1, 0]), 12, config)
    single = Segmenter.from_groups(travelling(), 12, config)
    assert joined.num_clusters == 2
    feats = torch.randn(2, 12, 4, 6, generator=torch.Generator().manual_seed(0))
    cosines = single.cosines(single.code(feats))
    expected = torch.stack([cosines[:, [1, 3]].amax(1), cosines[:, [0, 2]].amax(1)], dim=1)
    torch.testing.assert_close(joined.cosines(joined.code(feats)), expected)
    labels = joined.labels_of_code(joined.code(feats), (4, 6))
    assert torch.equal(labels, expected.argmax(1).to(torch.uint8))


def test_codes_are_smoothed_where_settings_say_so() -> None:
    config = load_config(VIT_SETTINGS | {"codes.reach": 32.0, "codes.center": "image"})
    segmenter = Segmenter.from_groups(travelling(), 12, config)
    feats = torch.randn(1, 12, 4, 6, generator=torch.Generator().manual_seed(0))
    colors = torch.rand(1, 24, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        segmenter.code(feats, colors=colors), codes_within(segmenter.head(feats), colors, config, True)
    )
    with pytest.raises(ValueError, match="colors"):
        segmenter.code(feats)


def test_another_backbones_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"linear\.weight"):
        Segmenter.from_groups(travelling(), 13, load_config(VIT_SETTINGS))


def test_an_image_of_one_kind_shows_it_before_a_background() -> None:
    config = load_config(VIT_SETTINGS | {"things.each-picture": "one"})
    segmenter = Segmenter.from_groups(travelling(groups=[0, 1, 1, 2]), 12, config)
    assert segmenter.num_clusters == 4
    code = torch.zeros(2, 6, 4, 6)
    code[:, 0] = 1.0
    code[0, :, 1, 2:4] = segmenter.centroids[1][:, None]
    code[1, :, 2:, 4] = segmenter.centroids[3][:, None]
    labels = segmenter.cosines(code).argmax(1)
    assert labels[0].unique().tolist() == [0, 2]  # cluster 0 is the background, group 1 the second kind
    assert labels[1].unique().tolist() == [0, 3]
    assert torch.equal(labels[0] == 2, torch.nn.functional.pad(torch.ones(1, 2), (2, 2, 1, 2)) == 1)
