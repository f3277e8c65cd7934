"""Is the network the published one, at every stride, from every kind of weights, and does it travel whole?"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from common.checkpoint import Checkpoint, checkpoint_path, save_checkpoint
from common.errors import UserError
from common.models import weights
from common.models.backbone import prepare_torchvision
from common.models.network import (
    PooledNorm,
    SeededDropout,
    build_network,
    load_arrays,
    network_signature,
    network_to_arrays,
)
from common.models.networks.deeplab import Aspp, AtrousConv, DeepLab
from common.models.parameter_groups import start_training, statistics_keys
from common.settings.load import load_config
from common.settings.network import Network
from common.training.batchnorm import blend_statistics

IMAGENET, CALIBRATED = "mobilenet_v2_imagenet.safetensors", "mobilenet_v2_bn_calibrated.safetensors"


def settings(**changes: Any) -> Network:
    """Random weights and a the usual amount of dropout, unless told otherwise."""
    return Network(**{"weights": "random", **changes})


def network(classes: int = 5, seed: int = 0, **changes: Any) -> Any:
    """A network that can train at once."""
    model = build_network(classes, settings(**changes), seed)
    model.seed_dropout(seed)
    return model


def images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth random images in 0..1."""
    coarse = torch.rand(count, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)


def torchvision_parts() -> Any:
    """Torchvision's two modules that the network is compared with."""
    prepare_torchvision()
    from torchvision.models import mobilenet_v2, segmentation

    return mobilenet_v2, segmentation.deeplabv3.DeepLabHead


# --- architecture ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "parameters"), [(13, 12_651_021), (16, 12_651_792), (19, 12_652_563)])
def test_parameter_counts_are_the_published_ones(classes: int, parameters: int) -> None:
    model = network(classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == 356
    assert (
        sum(b.numel() for n, b in model.state_dict().items() if n not in dict(model.named_parameters()))
        == 37_755
    )


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_stride_sets_the_grid_and_logits_have_the_size_of_the_images(stride: int) -> None:
    model = network(output_stride=stride).eval()
    pictures = images(1, 96, 128)
    assert model.backbone(pictures).shape == (1, 1280, 96 // stride, 128 // stride)
    logits = model(pictures)
    assert logits.shape == (1, 5, 96, 128) and logits.dtype == torch.float32


@pytest.mark.parametrize(("stride", "thin"), [(16, 2), (8, 4)])
def test_dilation_gives_the_features_of_the_strided_network_and_those_between(stride: int, thin: int) -> None:
    """Every second (fourth) feature of the dilated network is the strided one's, wherever padding is equal too:
    padding is, for it grows with the dilation."""
    plain, dilated = (network(output_stride=s).eval().backbone for s in (32, stride))
    pictures = images(1, 129, 193)
    with torch.no_grad():
        torch.testing.assert_close(
            dilated(pictures)[:, :, ::thin, ::thin], plain(pictures), rtol=1e-3, atol=1e-4
        )


def test_head_and_normalisation_are_torchvisions() -> None:
    mobilenet, head_of = torchvision_parts()
    model = network(rates="2,3,5").eval()
    for name, buffer in model.named_buffers():  # statistics that a forgotten batch norm would show
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(1))
    reference_head = head_of(1280, 5, (2, 3, 5)).eval()
    reference_head.load_state_dict(
        {n.removeprefix("head."): v for n, v in model.state_dict().items() if "head." in n}
    )
    backbone = mobilenet().features.eval()
    backbone.load_state_dict(model.backbone.state_dict())
    pictures = images(2, 128, 160)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        scores = reference_head(backbone((pictures - mean.view(3, 1, 1)) / std.view(3, 1, 1)))
        expected = F.interpolate(scores, (128, 160), mode="bilinear", align_corners=False)
        torch.testing.assert_close(model(pictures), expected, rtol=1e-3, atol=1e-4)


def test_the_other_normalisation_maps_pixels_to_minus_one_and_one() -> None:
    model = network(normalize="half")
    assert model.mean.flatten().tolist() == [0.5] * 3 and model.std.flatten().tolist() == [0.5] * 3


def test_without_normalisation_the_backbone_sees_the_pixels() -> None:
    model, seen = network(normalize="none").eval(), []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pictures = images(1, 64, 64)
    model(pictures)
    assert torch.equal(seen[0], pictures)


@pytest.mark.parametrize("size", [(16, 29), (4, 7), (40, 12), (12, 13)])
@pytest.mark.parametrize("rate", [12, 24, 36])
def test_taps_that_see_only_padding_are_left_out_without_a_trace(size: tuple[int, int], rate: int) -> None:
    trimmed = AtrousConv(3, 2, rate)
    full = nn.Conv2d(3, 2, 3, padding=rate, dilation=rate, bias=False)
    full.load_state_dict(trimmed.state_dict())
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(trimmed(x), full(x))
    for module in (trimmed, full):
        module(x).square().sum().backward()
    torch.testing.assert_close(trimmed.weight.grad, full.weight.grad)


def test_seed_decides_random_weights_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (network(seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.head[-1].weight, other.head[-1].weight)
    assert not torch.equal(first.backbone[0][0].weight, other.backbone[0][0].weight)


@pytest.mark.parametrize(
    "bad", [torch.zeros(3, 64, 64), torch.zeros(1, 4, 64, 64), torch.zeros(1, 3, 64, 64).byte()]
)
def test_images_of_another_form_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected float images"):
        network()(bad)


# --- a batch of one, dropout ----------------------------------------------------------------------------


def test_one_image_trains_and_leaves_the_pooled_statistics_alone() -> None:
    model = network().train()
    pooled: Any = next(m for m in model.modules() if isinstance(m, PooledNorm))
    pooled.running_mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    kept = pooled.running_mean.clone()
    first = model.backbone[0][1].running_mean.clone()
    model(images(1, 64, 96)).sum().backward()
    assert torch.equal(pooled.running_mean, kept)
    assert not torch.equal(model.backbone[0][1].running_mean, first), "the other batch norms learn as ever"
    assert pooled.weight.grad is not None and all(p.grad is not None for p in model.parameters())
    model(images(2, 64, 96))
    assert not torch.equal(pooled.running_mean, kept), "two images have a variance"


def test_pooled_norm_of_one_value_is_that_of_evaluation() -> None:
    norm: Any = PooledNorm(4)
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(4.0)
    x = torch.arange(4.0).view(1, 4, 1, 1)
    torch.testing.assert_close(norm(x), (x - 2) / (4 + norm.eps) ** 0.5)


def test_one_image_that_is_a_single_feature_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="single feature at output stride 32"):
        network().train()(images(1, 32, 32))
    network().eval()(images(1, 32, 32))
    still = network()
    start_training(still, "batchnorm")  # nothing is measured, hence nothing is missing
    still.seed_dropout(0)
    assert bool(still(images(1, 32, 32)).isfinite().all())
    start_training(still, "decoder")
    with pytest.raises(ValueError, match="single feature at output stride 32"):
        still(images(1, 32, 32))
    with pytest.raises(ValueError, match="single feature at output stride 32"):
        blend_statistics(network(), [images(1, 32, 32)], 1.0)


def test_dropout_follows_its_seed_and_keeps_the_mean() -> None:
    dropout = SeededDropout(0.5)
    x = torch.ones(1, 64, 32, 32)
    with pytest.raises(ValueError, match="seed_dropout"):
        dropout(x)
    draws = []
    for seed in (0, 0, 1):
        dropout.generator = torch.Generator().manual_seed(seed)
        draws.append(dropout(x))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert set(draws[0].unique().tolist()) == {0.0, 2.0}
    assert draws[0].mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(dropout.eval()(x), x)


def test_dropout_setting_reaches_the_head_and_a_copy_can_train() -> None:
    model = copy.deepcopy(network(dropout=0.25).train())
    assert [m.p for m in model.modules() if isinstance(m, SeededDropout)] == [0.25]
    model(images(2, 64, 64)).sum().backward()


# --- weights --------------------------------------------------------------------------------------------


def small_file(folder: Path, model: DeepLab, **changes: torch.Tensor) -> str:
    """Write a backbone in torchvision's names, with a classifier beside it."""
    tensors = {f"features.{name}": value.contiguous() for name, value in model.backbone.state_dict().items()}
    save_file(
        tensors | {"classifier.1.weight": torch.zeros(7, 1280)} | changes, folder / "backbone.safetensors"
    )
    return str(folder / "backbone.safetensors")


def test_a_backbone_file_fills_the_backbone_and_leaves_the_head_to_the_seed(tmp_path: Path) -> None:
    source = network(seed=1)
    model = network(seed=0, weights=small_file(tmp_path, source))
    assert torch.equal(model.backbone[3].conv[0][0].weight, source.backbone[3].conv[0][0].weight)
    assert torch.equal(model.head[-1].weight, network(seed=0).head[-1].weight)


def test_later_files_lie_over_earlier_ones(tmp_path: Path) -> None:
    first = small_file(tmp_path, network(seed=1))
    save_file({"features.0.1.running_mean": torch.full((32,), 7.0)}, tmp_path / "overlay.safetensors")
    model = network(weights=f"{first}, {tmp_path / 'overlay.safetensors'}")
    assert model.backbone[0][1].running_mean.eq(7).all()


def test_a_whole_network_comes_back_from_what_travels(tmp_path: Path) -> None:
    source = network(seed=1)
    source.train()(images(2, 64, 64))  # statistics that are not those of a fresh network
    parts = network_to_arrays(source)
    save_file(
        {k: torch.from_numpy(v) for part in parts for k, v in part.items()}, tmp_path / "whole.safetensors"
    )
    model = network(seed=0, weights=str(tmp_path / "whole.safetensors"))
    pictures = images(1, 64, 64)
    assert torch.equal(model.eval()(pictures), source.eval()(pictures))


@pytest.mark.parametrize("given", ["run", "run/checkpoints/round-0002.safetensors"])
def test_a_run_goes_on_from_the_network_of_another(given: str, tmp_path: Path) -> None:
    """Its newest checkpoint, as it is saved: beside the network lies the state of a run."""
    source = network(seed=1)
    source.train()(images(2, 64, 64))
    weights, statistics = network_to_arrays(source)
    for number in (1, 2):
        save_checkpoint(
            checkpoint_path(tmp_path / "run", number),
            Checkpoint(
                round=number,
                head={name: array * (number - 1) for name, array in (weights | statistics).items()},
                centroids=np.zeros((0, 5), np.float32),
                config=load_config({"task": "supervised"}),
                classes=None,
                weights_hash="",
                channels=5,
                grid=(0, 0),
                extra={"averaged": np.ones(1), "cluster/0/backbone.0.0.weight": np.ones(3)},
            ),
        )
    model = network(seed=0, weights=str(tmp_path / given))
    pictures = images(1, 64, 64)
    assert torch.equal(model.eval()(pictures), source.eval()(pictures))


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    source = network(seed=1)
    with pytest.raises(UserError, match="does not exist"):
        network(weights=str(tmp_path / "nothing.safetensors"))
    with pytest.raises(UserError, match="names no file"):
        network(weights=" , ")
    with pytest.raises(UserError, match=r"'backbone\.0\.0\.weight' has shape \[1\]"):
        network(weights=small_file(tmp_path, source, **{"features.0.0.weight": torch.zeros(1)}))
    with pytest.raises(UserError, match=r"no 'backbone\.30\.weight'"):
        network(weights=small_file(tmp_path, source, **{"features.30.weight": torch.zeros(1)}))
    with pytest.raises(UserError, match=r"it holds 'blocks\.0\.weight'"):
        network(weights=small_file(tmp_path, source, **{"blocks.0.weight": torch.zeros(1)}))
    save_file({"features.0.1.bias": torch.zeros(32)}, tmp_path / "overlay.safetensors")
    with pytest.raises(UserError, match=r"it lacks 'backbone\.0\.0\.weight' and \d+ more"):
        network(weights=str(tmp_path / "overlay.safetensors"))
    with pytest.raises(UserError, match=r"it lacks 'head\.0\.convs\.0\.0\.weight'"):
        network(weights=small_file(tmp_path, source, **{"head.4.bias": torch.zeros(5)}))
    whole = {k: v.contiguous() for k, v in source.state_dict().items()}
    save_file(whole, tmp_path / "whole.safetensors")
    with pytest.raises(UserError, match=r"'head\.4\.bias' has shape \[5\], the network expects \[6\]"):
        network(classes=6, weights=str(tmp_path / "whole.safetensors"))


def test_pretrained_weights_out_of_reach_are_a_sentence_with_the_right_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(weights, "reachable", lambda _url: False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"set network\.weights to a local"):
        network(weights="pretrained")


def test_pretrained_weights_reach_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    source = network(seed=1)
    tensors = {f"features.{name}": value for name, value in source.backbone.state_dict().items()}
    monkeypatch.setattr(weights, "torchvision_pretrained", lambda _setting: tensors)
    model = network(weights="pretrained")
    assert torch.equal(model.backbone[18][0].weight, source.backbone[18][0].weight)


@pytest.mark.shared
def test_real_weights_at_stride_16_give_the_reference_features(shared_weights: Path) -> None:
    mobilenet, _ = torchvision_parts()
    reference = mobilenet().features.eval()
    tensors = load_file(shared_weights / IMAGENET) | load_file(shared_weights / CALIBRATED)
    reference.load_state_dict(
        {n.removeprefix("features."): v.float() for n, v in tensors.items() if n.startswith("features.")},
        strict=False,
    )
    reference[14].conv[1][0].stride = (1, 1)
    for block in (15, 16, 17):
        reference[block].conv[1][0].dilation = reference[block].conv[1][0].padding = (2, 2)
    files = f"{shared_weights / IMAGENET},{shared_weights / CALIBRATED}"
    model = network(weights=files, output_stride=16).eval()
    pictures = images(1, 129, 161)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(pictures), reference(pictures), rtol=1e-3, atol=1e-3)


# --- what travels ---------------------------------------------------------------------------------------


def test_arrays_bring_a_network_over_whole_and_are_copies() -> None:
    source, target = network(seed=1), network(seed=2)
    source.train()(images(2, 64, 64))
    parameters, statistics = network_to_arrays(source)
    assert sum(a.size for a in parameters.values()) == sum(p.numel() for p in source.parameters())
    assert statistics.keys() == statistics_keys(source) and len(statistics) == 118
    assert all(
        a.dtype == np.float32 and a.flags["C_CONTIGUOUS"]
        for a in (*parameters.values(), *statistics.values())
    )
    load_arrays(target, parameters, statistics)
    pictures = images(1, 64, 64)
    assert torch.equal(target.eval()(pictures), source.eval()(pictures))
    parameters["head.4.bias"][:] = 9
    assert not source.head[4].bias.eq(9).any() and not target.head[4].bias.eq(9).any()


def test_arrays_that_do_not_fit_are_refused_by_name_and_change_nothing() -> None:
    model = network()
    parameters, statistics = network_to_arrays(model)
    moved = {key: array + 1 for key, array in parameters.items()}
    variance = "backbone.0.1.running_var"
    faults: list[tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]] = [
        (r"'head\.4\.bias' of the network is missing", _without(moved, "head.4.bias"), statistics),
        (r"'extra' was given", moved | {"extra": np.zeros(1)}, statistics),
        (r"'head\.4\.bias' is \(3,\), \(5,\) was", moved | {"head.4.bias": np.zeros(3)}, statistics),
        (r"'head\.4\.bias' holds NaN", moved | {"head.4.bias": np.full(5, np.nan)}, statistics),
        (rf"'{variance}' holds a negative variance", moved, statistics | {variance: np.full(32, -1.0)}),
        (rf"'{variance}' of the network is missing", moved, _without(statistics, variance)),
    ]
    for message, given, measured in faults:
        with pytest.raises(ValueError, match=message):
            load_arrays(model, given, measured)
    unchanged, _ = network_to_arrays(model)
    assert all(np.array_equal(unchanged[key], parameters[key]) for key in parameters)


def _without(arrays: dict[str, np.ndarray], key: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if name != key}


def test_signature_tells_architectures_apart_and_nothing_else() -> None:
    same = {
        network_signature(16, settings(**c)) for c in ({}, {"weights": "a.safetensors"}, {"dropout": 0.1})
    }
    changed: list[dict[str, Any]] = [{"output_stride": 16}, {"rates": "6,12,18"}, {"normalize": "half"}]
    others = {network_signature(16, settings(**c)) for c in changed} | {network_signature(13, settings())}
    assert len(same) == 1 and len(others) == 4 and not same & others


def test_pooling_branch_is_the_same_at_every_place() -> None:
    aspp: Any = Aspp(8, (1, 2, 3), 0.0).eval()
    x = torch.randn(1, 8, 5, 7, generator=torch.Generator().manual_seed(0))
    pooled = aspp.convs[4](x)
    assert pooled.shape == (1, 256, 1, 1) and aspp(x).shape == (1, 256, 5, 7)
