"""timm's vision transformers: tokens or keys of a block as patch features."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from common.errors import UserError
from common.models.backbone import (
    BACKBONES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    PER_IMAGE,
    VIT,
    Backbone,
    BackboneFacts,
    prepare_torchvision,
    seeded_constructors,
    weights_path,
)
from common.models.weights import load_fitting, read_safetensors, timm_pretrained
from common.settings.unsupervised import Model

_log = logging.getLogger(__name__)


@BACKBONES.register(
    VIT,
    summary="any vision transformer of timm by its name, as vit_small_patch16_224; pretrained: from its hub",
    facts=BackboneFacts(weights_from="timm", settings=("depth", "feature"), stride=None),
)
def _load_vit(model: Model, seed: int) -> Backbone:
    prepare_torchvision()
    import timm

    name = model.backbone
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, [*timm.list_models("*vit*"), *BACKBONES.names()], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "for example vit_small_patch16_224."
        raise UserError(f"Backbone '{name}' is neither {_others()} nor a timm model; {hint}")

    def create(**options: Any) -> Any:
        return timm.create_model(name, num_classes=0, dynamic_img_size=True, **options)

    try:
        with seeded_constructors(seed):
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
        f"choose for example vit_small_patch16_224, or {_others()}."
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
        _log.warning(
            "%s: normalising with the mean and std of ImageNet, while timm's own weights of %s "
            "expect %s and %s; say which the file wants by model.normalize = 'imagenet' or 'model'",
            model.weights,
            model.backbone,
            *own,
        )
    return IMAGENET_MEAN, IMAGENET_STD


def _others() -> str:
    return ", ".join(name for name in BACKBONES.names() if name != VIT)


class VitPatches(nn.Module):
    """The patch features of a timm vision transformer's last block."""

    def __init__(self, vit: nn.Module, feature: str) -> None:
        """Wrap ``vit``; ``feature`` is "tokens" (after the final norm) or "keys" (of the last attention)."""
        super().__init__()
        self.vit: Any = vit
        self.feature = feature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised [B, 3, H, W] to [B, C, H / patch, W / patch]."""
        if self.feature == "tokens":
            last: torch.Tensor = self.vit.forward_intermediates(
                x, indices=1, norm=True, intermediates_only=True
            )[-1]
            return last
        return self._keys(x)

    def _keys(self, x: torch.Tensor) -> torch.Tensor:
        attention = self.vit.blocks[-1].attn
        fused = isinstance(getattr(attention, "qkv", None), nn.Linear)
        layer = attention.qkv if fused else getattr(attention, "k_proj", None)
        caught: list[torch.Tensor] = []
        if layer is not None:
            # the keys are no output of any block: a hook catches them where they are made
            handle = layer.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
            try:
                self.vit.forward_features(x)
            finally:
                handle.remove()
        if not caught:
            raise UserError(
                "The attention of this backbone does not show its keys; set model.feature to 'tokens'."
            )
        keys = caught[-1].chunk(3, dim=-1)[1] if fused else caught[-1]
        patches = keys[:, self.vit.num_prefix_tokens :]
        side = self.vit.patch_embed.patch_size
        grid = (x.shape[2] // side[0], x.shape[3] // side[1])
        return patches.transpose(1, 2).reshape(len(patches), -1, *grid)
