"""Do the frozen backbones give the right features, stay frozen, and refuse what does not fit?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from common.errors import UserError
from common.models import weights
from common.models.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    backbone_settings,
    crop_box,
    load_backbone,
    prepare_image,
    state_hash,
    weights_key,
)
from common.settings.unsupervised import Model

ROOT = Path(__file__).resolve().parents[3]
MOBILENET_FILE = "mobilenet_v2_imagenet.safetensors"
VIT_FILE = "vit_tiny_patch16_d6_distilled.safetensors"


def vit(**changes: Any) -> Model:
    """A transformer small enough for a test."""
    return Model(**{"backbone": "test_vit", "weights": "random", "height": 64, "width": 96, **changes})


def cnn(**changes: Any) -> Model:
    """A convolutional backbone on a small picture of 16 n + 1 pixels."""
    return Model(**{"weights": "random", "height": 65, "width": 97, **changes})


def pictures(model: Model, count: int = 2, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures in 0..1."""
    coarse = torch.rand(count, 3, 5, 7, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (model.height, model.width), mode="bilinear", align_corners=True)


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


# --- transformers ---------------------------------------------------------------------------------------


def test_vit_gives_the_normed_patch_tokens_in_row_major_order() -> None:
    model = vit()
    backbone = load_backbone(model, seed=0, device="cpu")
    images = pictures(model)
    features = backbone(images)
    net: Any = backbone.extractor.vit
    expected = net.forward_features(normalised(images))[:, net.num_prefix_tokens :]
    assert backbone.grid == (4, 6) and features.shape == (2, 24, backbone.channels)
    torch.testing.assert_close(features, expected)


def test_vit_keys_are_the_middle_third_of_the_last_attention() -> None:
    model = vit(feature="keys")
    backbone = load_backbone(model, seed=0, device="cpu")
    images = pictures(model)
    net: Any = backbone.extractor.vit
    x = net._pos_embed(net.patch_embed(normalised(images)))
    x = net.norm_pre(net.patch_drop(x))
    for block in net.blocks[:-1]:
        x = block(x)
    attention = net.blocks[-1].attn
    projected = F.linear(net.blocks[-1].norm1(x), attention.qkv.weight, attention.qkv.bias)
    width = projected.shape[-1] // 3
    expected = projected[:, net.num_prefix_tokens :, width : 2 * width]
    torch.testing.assert_close(backbone(images), expected)


def test_depth_cuts_blocks_and_refuses_more_than_there_are() -> None:
    assert len(load_backbone(vit(depth=2), 0, "cpu").extractor.vit.blocks) == 2
    with pytest.raises(UserError, match=r"depth is 99.* has 6 blocks"):
        load_backbone(vit(depth=99), 0, "cpu")


def test_size_that_is_no_multiple_of_the_patch_names_the_next_sizes() -> None:
    with pytest.raises(UserError, match=r"model.width is 97.*96 or 112"):
        load_backbone(vit(width=97), 0, "cpu")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_tiny_patch16_22", "did you mean vit_tiny_patch16_224"),
        ("levit_128s", "neither a vision transformer nor a CNN"),
    ],
)
def test_name_that_is_no_transformer(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_backbone(vit(backbone=name), 0, "cpu")


@pytest.mark.parametrize("backbone", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_register_tokens_are_not_features(backbone: str) -> None:
    side = 14 if "14" in backbone else 16
    model = vit(backbone=backbone, depth=1, height=4 * side, width=5 * side)
    loaded = load_backbone(model, 0, "cpu")
    assert loaded.grid == (4, 5) and loaded(pictures(model, 1)).shape == (1, 20, 384)


# --- the CNN --------------------------------------------------------------------------------------------


def plain_mobilenet(shared_weights: Path) -> Any:
    """Torchvision's own network with the file's weights, written out without this project's code."""
    from torchvision.models import mobilenet_v2

    net = mobilenet_v2(weights=None)
    tensors = load_file(shared_weights / MOBILENET_FILE)
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    return net.eval()


@pytest.mark.shared
def test_mobilenet_agrees_with_a_plain_dilated_forward(shared_weights: Path) -> None:
    model = cnn(weights=str(shared_weights / MOBILENET_FILE), stages="13,17,18")
    images = pictures(model)
    net = plain_mobilenet(shared_weights)
    net.features[14].conv[1][0].stride = (1, 1)
    for index in (15, 16, 17):
        net.features[index].conv[1][0].dilation = (2, 2)
        net.features[index].conv[1][0].padding = (2, 2)
    maps, x = [], normalised(images)
    with torch.no_grad():
        for index, block in enumerate(net.features):
            x = block(x)
            if index in (13, 17, 18):
                maps.append(x)
    expected = torch.cat(maps, 1)
    backbone = load_backbone(model, 0, "cpu")
    assert backbone.grid == (5, 7) == tuple(expected.shape[2:])
    assert backbone.channels == 96 + 320 + 1280
    torch.testing.assert_close(backbone(images), expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.shared
def test_dilation_keeps_the_undilated_network_at_every_other_place(shared_weights: Path) -> None:
    """At 32 n + 1 pixels the strided network's features are the even positions of the dilated one's."""
    model = cnn(weights=str(shared_weights / MOBILENET_FILE), stages="17")
    images = pictures(model)
    with torch.no_grad():
        coarse = plain_mobilenet(shared_weights).features[:18](normalised(images))
    dense = load_backbone(model, 0, "cpu")(images).transpose(1, 2).unflatten(2, (5, 7))
    torch.testing.assert_close(dense[:, :, ::2, ::2], coarse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(65, 97), (64, 96), (70, 101)])
def test_stages_of_all_strides_end_on_one_grid(height: int, width: int) -> None:
    model = cnn(height=height, width=width, stages="1,3,6,13,17")
    backbone = load_backbone(model, 0, "cpu")
    assert backbone.grid == (-(-height // 16), -(-width // 16))
    assert backbone.channels == 16 + 24 + 32 + 96 + 320


def test_fine_stages_are_averaged_around_the_pixels_of_the_coarse_grid() -> None:
    model = cnn(stages="6")
    backbone = load_backbone(model, 0, "cpu")
    images = pictures(model, 1)
    with torch.no_grad():
        x = normalised(images)
        for block in backbone.extractor.features:
            x = block(x)
    got = backbone(images).transpose(1, 2).unflatten(2, (5, 7))
    for i, j in ((0, 0), (2, 3), (4, 6)):  # position (i, j) is centred on fine position (2 i, 2 j)
        window = x[0, :, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2]
        torch.testing.assert_close(got[0, :, i, j], window.mean((1, 2)))


def test_uneven_alignment_is_said(caplog: pytest.LogCaptureFixture) -> None:
    load_backbone(cnn(), 0, "cpu")
    assert not caplog.records
    load_backbone(cnn(height=64), 0, "cpu")
    assert "65 x 97" in caplog.text


# --- frozen, seeded, hashed -----------------------------------------------------------------------------


@pytest.mark.parametrize("model", [vit(), cnn()], ids=["vit", "cnn"])
def test_frozen_for_good(model: Model) -> None:
    backbone = load_backbone(model, 0, "cpu")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    images = pictures(model)
    first = backbone(images)
    assert not backbone.train(True).training
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    again = backbone(images.requires_grad_())
    assert not again.requires_grad and torch.equal(first, again)
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("model", [vit(), cnn()], ids=["vit", "cnn"])
def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone(model: Model) -> None:
    state = torch.random.get_rng_state()
    hashes = [load_backbone(model, seed, "cpu").weights_hash for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(state, torch.random.get_rng_state())


def test_hash_sees_a_single_weight_and_the_normalisation() -> None:
    backbone = load_backbone(vit(), 0, "cpu")
    assert state_hash(backbone) == backbone.weights_hash
    backbone.extractor.vit.blocks[0].norm1.bias.data[3] += 1e-6
    changed = state_hash(backbone)
    assert changed != backbone.weights_hash
    assert load_backbone(vit(normalize="model"), 0, "cpu").weights_hash != backbone.weights_hash


def test_wrong_picture_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected pictures \[B, 3, 64, 96\]"):
        load_backbone(vit(), 0, "cpu")(torch.zeros(1, 3, 96, 64))


# --- weights files --------------------------------------------------------------------------------------


@pytest.fixture
def vit_file(tmp_path: Path) -> Path:
    """The weights of a random transformer with a classifier, as timm would save them."""
    import timm

    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=10).state_dict(), path)
    return path


def test_file_loads_without_its_classifier_and_with_blocks_cut(vit_file: Path) -> None:
    whole = load_backbone(vit(weights=str(vit_file)), 0, "cpu")
    net: Any = whole.extractor.vit
    assert torch.equal(net.blocks[5].mlp.fc1.weight, load_file(vit_file)["blocks.5.mlp.fc1.weight"])
    assert len(load_backbone(vit(weights=str(vit_file), depth=2), 0, "cpu").extractor.vit.blocks) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("blocks.3.norm1.bias"), "lacks 'blocks.3.norm1.bias'"),
        (lambda t: t.update(stray=torch.zeros(1)), "the network has no 'stray'"),
        (lambda t: t.update({"norm.weight": torch.zeros(7)}), r"'norm.weight' has shape \[7\], .* \[64\]"),
    ],
)
def test_file_that_does_not_fit_names_the_key(vit_file: Path, change: Any, words: str) -> None:
    tensors = load_file(vit_file)
    change(tensors)
    save_file(tensors, vit_file)
    with pytest.raises(UserError, match=words):
        load_backbone(vit(weights=str(vit_file)), 0, "cpu")


def test_file_of_another_depth_names_a_key(vit_file: Path) -> None:
    with pytest.raises(UserError, match=r"lacks 'cls_token'|lacks|shape"):
        load_backbone(vit(backbone="vit_tiny_patch16_224", weights=str(vit_file)), 0, "cpu")


def test_missing_or_broken_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_backbone(vit(weights=str(tmp_path / "nothing.safetensors")), 0, "cpu")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"this is no safetensors file")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_backbone(vit(weights=str(broken)), 0, "cpu")


@pytest.mark.shared
def test_the_small_vit_loads_and_says_which_normalisation(
    shared_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(shared_weights / VIT_FILE)
    model = vit(backbone="vit_tiny_patch16_224", weights=path, depth=6)
    backbone = load_backbone(model, 0, "cpu")
    assert "model.normalize" in caplog.text and backbone.mean.flatten().tolist() == pytest.approx(
        IMAGENET_MEAN
    )
    assert backbone.channels == 192 and len(backbone.extractor.vit.blocks) == 6
    bias = load_file(path)["blocks.5.mlp.fc2.bias"].float()
    assert torch.equal(backbone.extractor.vit.blocks[5].mlp.fc2.bias, bias)
    assert torch.isfinite(backbone(pictures(model))).all()
    with pytest.raises(UserError, match=r"lacks 'blocks.6"):
        load_backbone(model.model_copy(update={"depth": 0}), 0, "cpu")


def test_pretrained_without_a_connection_fails_fast(tmp_path: Path) -> None:
    """A fresh process with empty caches, whose every connection is refused."""
    program = (
        "import time; from common.errors import UserError\n"
        "from common.settings.schema import Model; from common.models.backbone import load_backbone\n"
        "for name in ('vit_tiny_patch16_224', 'mobilenet_v2'):\n"
        "    started = time.monotonic()\n"
        "    try:\n"
        "        load_backbone(Model(backbone=name, height=64, width=96), 0, 'cpu')\n"
        "    except UserError as error:\n"
        "        print(f'{time.monotonic() - started:.1f} s: {error}')\n"
    )
    nowhere = "http://127.0.0.1:9"
    environment = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"} | {
        "HF_HOME": str(tmp_path),
        "TORCH_HOME": str(tmp_path),
        "HF_ENDPOINT": nowhere,
        "HTTPS_PROXY": nowhere,
        "https_proxy": nowhere,
        "PYTHONPATH": str(ROOT),
    }
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stderr
    said = result.stdout.splitlines()
    for name, line in zip(("vit_tiny_patch16_224", "mobilenet_v2"), said, strict=True):
        assert name in line and "set model.weights to a local safetensors file" in line
        assert float(line.split()[0]) < 60  # a retrying hub takes minutes


def test_pretrained_from_the_hub_s_local_cache_needs_no_connection(
    vit_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    import timm

    file = vit_file.with_name("whole.safetensors")
    save_file(timm.create_model("test_vit").state_dict(), file)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(file))
    monkeypatch.setattr(weights, "reachable", lambda _url: pytest.fail("asked the network"))
    backbone = load_backbone(vit(backbone="test_vit.r160_in1k", weights="pretrained"), 0, "cpu")
    expected = load_file(file)["blocks.0.attn.qkv.weight"]
    assert torch.equal(backbone.extractor.vit.blocks[0].attn.qkv.weight, expected)
    assert backbone.mean.flatten().tolist() == [0.5, 0.5, 0.5]  # timm's own for this model


def test_tag_that_does_not_exist() -> None:
    for source, words in (("pretrained", "no pretrained weights"), ("random", "Invalid pretrained tag")):
        with pytest.raises(UserError, match=words):
            load_backbone(vit(backbone="vit_small_patch8_224.nothing", weights=source), 0, "cpu")


# --- inputs ---------------------------------------------------------------------------------------------


def test_prepared_image_of_the_right_size_is_untouched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    prepared = prepare_image(image, vit(crop="center"))
    assert prepared.dtype == torch.float32 and prepared.shape == (3, 64, 96)
    assert torch.equal((prepared * 255).round().byte(), torch.from_numpy(image).permute(2, 0, 1))


def test_center_crop_sees_the_middle_and_squash_sees_all() -> None:
    image = np.zeros((128, 384, 3), dtype=np.uint8)
    image[:, 96:288] = 255  # the middle window of 128 x 192 is white
    assert crop_box(128, 384, vit(crop="center")) == (96, 0, 288, 128)
    assert crop_box(384, 128, vit(crop="center")) == pytest.approx((0, 149.333, 128, 234.667), abs=1e-3)
    cropped = prepare_image(image, vit(crop="center"))  # smoothing looks beyond the window's edge by a pixel
    assert cropped[:, :, 1:-1].min() == 1 and cropped.min() > 0.8
    squashed = prepare_image(image, vit(crop="none"))
    assert squashed[0, 0, 0] == 0 and squashed[0, 0, 48] == 1


def test_nearest_makes_no_new_values() -> None:
    image = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (100, 120, 3))
    assert set(prepare_image(image, vit(resize="nearest")).flatten().tolist()) == {0.0, 1.0}
    assert len(set(prepare_image(image, vit(resize="bilinear")).flatten().tolist())) > 2


def test_prepare_refuses_what_is_no_rgb_picture() -> None:
    with pytest.raises(ValueError, match="uint8 RGB"):
        prepare_image(np.zeros((8, 8), dtype=np.uint8), vit())


def test_weights_key_follows_content_and_not_the_path(tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first.write_bytes(b"one")
    second.write_bytes(b"one")
    assert weights_key(vit(weights=str(first)), 0) == weights_key(vit(weights=str(second)), 5)
    second.write_bytes(b"two")
    assert weights_key(vit(weights=str(first)), 0) != weights_key(vit(weights=str(second)), 0)
    assert weights_key(vit(), 3) == "random:3"
    assert weights_key(vit(weights="pretrained"), 3) == "timm:test_vit"
    with pytest.raises(UserError, match="does not exist"):
        weights_key(vit(weights=str(tmp_path / "none")), 0)


def test_only_settings_that_matter_make_new_features() -> None:
    assert backbone_settings(vit()) == backbone_settings(vit(clusters=3, dim=9, stages="1"))
    assert backbone_settings(cnn()) == backbone_settings(cnn(depth=3, feature="keys"))
    for change in (
        {"height": 80},
        {"crop": "center"},
        {"depth": 2},
        {"feature": "keys"},
        {"normalize": "model"},
    ):
        assert backbone_settings(vit()) != backbone_settings(vit(**change))
