"""How does a picture become frozen patch features?

Any timm vision transformer, or torchvision's MobileNetV2 as a dilated CNN. timm and torchvision are
imported only when a backbone is loaded. `prepare_image` and `weights_key` live in `inputs`, and are at
hand here too.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import nn

from common.errors import UserError
from common.models.extractors import MobileNetStages, VitPatches
from common.models.inputs import CNN_STRIDE, is_cnn, prepare_image, weights_key, weights_path
from common.models.operators import prepare_torchvision
from common.models.weights import (
    load_fitting,
    read_safetensors,
    state_hash,
    timm_pretrained,
    torchvision_pretrained,
)
from common.seeds import derive
from common.settings.unsupervised import Model
from common.system.device import choose_device

__all__ = ["Backbone", "load_backbone", "prepare_image", "weights_key"]

log = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
PER_IMAGE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Mean and std where every picture is brought to mean 0 and std 1 by itself."""
MIN_SPREAD = 0.02
"""A picture of one colour is not blown up to noise."""
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A frozen feature extractor that owns its normalisation.

    Frozen for good: no parameter asks for a gradient, and `train` leaves it in eval mode (so batch
    norms keep their statistics and nothing is dropped).

    Attributes:
        channels: C, channels of a patch feature.
        grid: (h, w), patches of a picture of the configured size.
        size: (H, W), the configured input size in pixels.
        weights_hash: sha256 (hex) of everything the model holds, normalisation included.
    """

    extractor: Any
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        extractor: nn.Module,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        per_image: bool = False,
    ) -> None:
        """Freeze ``extractor``: normalised [B, 3, H, W] -> [B, C, h, w].

        ``per_image`` gives every picture mean 0 and standard deviation 1 in each channel first: its light
        and tint are gone before mean and std apply.
        """
        super().__init__()
        self.per_image = per_image
        self.extractor = extractor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.size = size
        self.requires_grad_(False)
        self.train(False)
        with torch.no_grad():  # one picture tells the truth about channels and grid
            _, self.channels, *grid = self.extractor(torch.zeros(1, 3, *size)).shape
        self.grid: tuple[int, int] = (grid[0], grid[1])
        self.weights_hash = state_hash(self)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map pictures, float [B, 3, H, W] in 0..1, to token-major features [B, h*w, C].

        Raises `ValueError` where the pictures do not have the configured size.
        """
        if tuple(images.shape[1:]) != (3, *self.size):
            raise ValueError(
                f"expected pictures [B, 3, {self.size[0]}, {self.size[1]}], got {list(images.shape)}"
            )
        if self.per_image:
            spread = images.std(dim=(2, 3), keepdim=True).clamp(min=MIN_SPREAD)
            images = (images - images.mean(dim=(2, 3), keepdim=True)) / spread
        features: torch.Tensor = self.extractor((images - self.mean) / self.std)
        return features.flatten(2).transpose(1, 2)


def load_backbone(model: Model, seed: int, device: str | torch.device | None = None) -> Backbone:
    """Build the frozen backbone that ``model`` describes and put it on a device.

    Args:
        model: name, weights, input size and what counts as a feature.
        seed: of random weights (``weights = "random"``); the global generators are left alone.
        device: see `common.system.device.choose_device`.

    Raises:
        UserError: unknown name, size that does not fit the patch, weights that are missing or do not
            fit, or pretrained weights without a connection.
    """
    place = choose_device(device)
    backbone = _load_mobilenet(model, seed) if is_cnn(model) else _load_vit(model, seed)
    return backbone.to(place)


def _load_mobilenet(model: Model, seed: int) -> Backbone:
    prepare_torchvision()
    from torchvision.models import mobilenet_v2

    if model.height % CNN_STRIDE != 1 or model.width % CNN_STRIDE != 1:
        log.warning(
            "input %d x %d: the features of %s lie exactly on the picture only for sides of 16 n + 1 pixels, "
            "for example %d x %d",
            model.height,
            model.width,
            model.backbone,
            *(side // CNN_STRIDE * CNN_STRIDE + 1 for side in (model.height, model.width)),
        )
    with _seeded(seed):
        net = mobilenet_v2(weights=None)
    if model.weights != "random":
        pretrained = model.weights == "pretrained"
        source = "torchvision's file" if pretrained else f"Weights file {weights_path(model)}"
        tensors = torchvision_pretrained() if pretrained else read_safetensors(weights_path(model))
        net.classifier = nn.Identity()
        load_fitting(net, tensors, source, unused=lambda name: name.startswith("classifier."))
    stages = [int(stage) for stage in model.stages.split(",")]
    per_image = model.normalize == "image"
    mean, std = PER_IMAGE if per_image else (IMAGENET_MEAN, IMAGENET_STD)
    return Backbone(
        MobileNetStages(net.features, stages), (model.height, model.width), mean, std, per_image=per_image
    )


def _load_vit(model: Model, seed: int) -> Backbone:
    prepare_torchvision()
    import timm

    name = model.backbone
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, [*timm.list_models("*vit*"), "mobilenet_v2"], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "for example vit_small_patch16_224."
        raise UserError(f"Backbone '{name}' is neither mobilenet_v2 nor a timm model; {hint}")

    def create(**options: Any) -> Any:
        return timm.create_model(name, num_classes=0, dynamic_img_size=True, **options)

    try:
        with _seeded(seed):
            vit: Any = (
                timm_pretrained(name, create) if model.weights == "pretrained" else create(pretrained=False)
            )
    except TypeError:
        raise _no_transformer(name) from None
    except RuntimeError as error:
        raise UserError(f"timm cannot build backbone '{name}' ({error}); check its name and tag.") from None
    if not all(
        hasattr(vit, part) for part in ("blocks", "patch_embed", "forward_intermediates", "num_prefix_tokens")
    ):
        raise _no_transformer(name)
    _check_patches(model, vit)
    _cut_blocks(model, vit)
    if model.weights not in ("pretrained", "random"):
        path = weights_path(model)
        kept = len(vit.blocks)

        def unused(key: str) -> bool:  # a classifier, and blocks that model.depth cuts off
            group, _, rest = key.partition(".")
            cut = group == "blocks" and int(rest.partition(".")[0]) >= kept
            return group in ("head", "head_dist") or (cut and model.depth > 0)

        load_fitting(vit, read_safetensors(path), f"Weights file {path}", unused)
    mean, std = _vit_statistics(model, vit)
    extractor = VitPatches(vit, model.feature)
    return Backbone(extractor, (model.height, model.width), mean, std, per_image=model.normalize == "image")


def _no_transformer(name: str) -> UserError:
    return UserError(
        f"Backbone '{name}' is not a plain vision transformer with a variable input size; "
        "choose for example vit_small_patch16_224, or mobilenet_v2."
    )


def _check_patches(model: Model, vit: Any) -> None:
    for axis, side, patch in zip(
        ("height", "width"), (model.height, model.width), vit.patch_embed.patch_size, strict=True
    ):
        if side % patch:
            below = side // patch * patch
            nearest = f"{below} or {below + patch}" if below >= 32 else f"{below + patch}"
            raise UserError(
                f"model.{axis} is {side}, which the {patch}-pixel patches of {model.backbone} do not fill; "
                f"set it to {nearest}."
            )


def _cut_blocks(model: Model, vit: Any) -> None:
    if model.depth > len(vit.blocks):
        raise UserError(
            f"model.depth is {model.depth}, but {model.backbone} has {len(vit.blocks)} blocks; "
            f"set it to 1 ... {len(vit.blocks)}, or 0 for all."
        )
    if model.depth:
        vit.blocks = vit.blocks[: model.depth]


def _vit_statistics(model: Model, vit: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation of the input per channel, for pixels in 0..1."""
    if model.normalize == "image":
        return PER_IMAGE
    own = (tuple(vit.pretrained_cfg["mean"]), tuple(vit.pretrained_cfg["std"]))
    if model.normalize == "model" or (model.normalize == "auto" and model.weights == "pretrained"):
        return own
    if model.normalize == "auto" and model.weights != "random" and own != (IMAGENET_MEAN, IMAGENET_STD):
        log.warning(
            "%s: normalising with the mean and std of ImageNet, while timm's own weights of %s "
            "expect %s and %s; say which the file wants by model.normalize = 'imagenet' or 'model'",
            model.weights,
            model.backbone,
            *own,
        )
    return IMAGENET_MEAN, IMAGENET_STD


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let constructors that draw from torch's global generator draw from ``seed``, then put it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "backbone"))
        yield
