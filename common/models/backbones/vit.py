"""timm's vision transformers: tokens, keys or values of one or several blocks as patch features."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

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
from common.models.backbones.cnn import CnnStages
from common.models.dense import Dense
from common.models.weights import load_fitting, read_safetensors, timm_pretrained
from common.settings.unsupervised import Model

_log = logging.getLogger(__name__)

# transformers keep their size free by the first; CNNs keep a grid of stride 16 by the second; the rest has neither
_BUILDS: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"output_stride": 16}, {})


@BACKBONES.register(
    VIT,
    summary="any vision transformer of timm by its name, as vit_small_patch16_224; pretrained: from its hub",
    facts=BackboneFacts(
        weights_from="timm",
        settings=("depth", "feature"),
        stride=None,
        origin="as the card of the model on timm's hub says",
    ),
)
def load_timm(model: Model, seed: int, tensors: Mapping[str, torch.Tensor] | None = None) -> Backbone:
    """Build a network of timm, transformer or CNN; ``tensors`` are its pretrained weights where timm has others."""
    prepare_torchvision()
    import timm

    name = model.backbone
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, [*timm.list_models("*vit*"), *BACKBONES.names()], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "for example vit_small_patch16_224."
        others = ", ".join(other for other in BACKBONES.names() if other not in (VIT, "cnn"))
        raise UserError(f"Backbone '{name}' is neither {others} nor a timm model; {hint}")
    net = _build(model, seed, pretrained=model.weights == "pretrained" and tensors is None)
    source = f"The weights file of {name}"
    if model.weights not in ("pretrained", "random"):
        source = f"Weights file {weights_path(model)}"
        tensors = read_safetensors(weights_path(model))
    parts = ("blocks", "patch_embed", "forward_intermediates")
    transformer = all(hasattr(net, part) for part in parts) and hasattr(net.patch_embed, "feat_ratio")
    mean, std = _statistics(model, net)
    size, per_image = (model.height, model.width), model.normalize == "image"
    try:
        extractor, dense = (_transformer if transformer else _cnn)(model, net, tensors, source)
        return Backbone(extractor, size, mean, std, per_image=per_image, dense=dense)
    except (AssertionError, RuntimeError) as error:  # how networks say that they have one input size only
        raise _no_backbone(name, str(error).splitlines()[0]) from None


def _build(model: Model, seed: int, pretrained: bool) -> Any:
    import timm

    for options in _BUILDS:

        def create(options: dict[str, Any] = options, **more: Any) -> Any:
            return timm.create_model(model.backbone, num_classes=0, **options, **more)

        try:
            with seeded_constructors(seed):
                return timm_pretrained(model.backbone, create) if pretrained else create(pretrained=False)
        except TypeError:
            continue
        except RuntimeError as error:
            raise UserError(
                f"timm cannot build backbone '{model.backbone}' ({error}); check its name and tag."
            ) from None
    raise _no_backbone(model.backbone, "its constructor asks for more")


def _no_backbone(name: str, why: str) -> UserError:
    return UserError(
        f"Backbone '{name}' is neither a vision transformer nor a CNN with a variable input size ({why}); "
        "choose for example vit_small_patch16_224, resnet50 or a name of `list backbones`."
    )


def _indices(model: Model, count: int, what: str) -> list[int]:
    """Return the blocks or stages that are asked for; `UserError` where there are not so many."""
    found = [int(index) for index in model.blocks.split(",")] if model.blocks else []
    if any(index >= count for index in found):
        raise UserError(
            f"model.blocks is {model.blocks}, but {model.backbone} has {count} {what}; "
            f"set it to indices from 0 to {count - 1}."
        )
    return found


def _check_sides(model: Model, strides: Sequence[int], what: str) -> None:
    sides = (("height", model.height), ("width", model.width))
    for (axis, side), patch in zip(sides, strides, strict=True):
        if side % patch:
            below = side // patch * patch
            nearest = f"{below} or {below + patch}" if below >= 32 else f"{below + patch}"
            raise UserError(
                f"model.{axis} is {side}, which the {patch}-pixel {what} of {model.backbone} do not fill; "
                f"set it to {nearest}."
            )


def _transformer(
    model: Model, vit: Any, tensors: Mapping[str, torch.Tensor] | None, source: str
) -> tuple[nn.Module, Dense | None]:
    """Keep the blocks that are needed, load what belongs to them, and say how patches lie."""
    patch = vit.patch_embed.feat_ratio(as_scalar=False)
    _check_sides(model, patch, "patches")
    if model.depth > len(vit.blocks):
        raise UserError(
            f"model.depth is {model.depth}, but {model.backbone} has {len(vit.blocks)} blocks; "
            f"set it to 1 ... {len(vit.blocks)}, or 0 for all."
        )
    blocks = _indices(model, model.depth or len(vit.blocks), "blocks")
    kept = max(blocks) + 1 if blocks else model.depth or len(vit.blocks)
    if kept < len(vit.blocks):
        vit.blocks = vit.blocks[:kept]
    if tensors is not None:

        def unused(key: str) -> bool:  # a classifier, and blocks that are cut off
            group, _, rest = key.partition(".")
            cut = group == "blocks" and int(rest.partition(".")[0]) >= kept
            return group in ("head", "head_dist") or (cut and bool(model.depth or blocks))

        load_fitting(vit, tensors, source, unused)
    if patch[0] != patch[1]:
        return VitPatches(vit, model.feature, blocks, model.final_norm), None
    return VitPatches(vit, model.feature, blocks, model.final_norm), Dense.of(model, patch[0])


def _cnn(
    model: Model, net: Any, tensors: Mapping[str, torch.Tensor] | None, source: str
) -> tuple[nn.Module, Dense]:
    """Load a CNN's weights, keep its stages up to the last that is needed, and say how cells lie."""
    if not hasattr(net, "forward_intermediates") or not hasattr(net, "feature_info"):
        raise _no_backbone(model.backbone, "timm does not show its stages")
    if model.feature != "tokens":
        raise UserError(
            f"model.feature is {model.feature}, but {model.backbone} has no attention; set it to 'tokens'."
        )
    if tensors is not None:
        heads = ("fc", "classifier", "head")
        load_fitting(net, tensors, source, unused=lambda key: key.partition(".")[0] in heads)
    count = len(net.feature_info)
    stages = CnnStages(net, _indices(model, count, "stages") or [count - 1])
    _check_sides(model, (stages.stride, stages.stride), "cells")
    return stages, Dense.of(model, stages.stride)


def _statistics(model: Model, net: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation of the input per channel, for pixels in 0..1."""
    if model.normalize == "image":
        return PER_IMAGE
    own = (tuple(net.pretrained_cfg["mean"]), tuple(net.pretrained_cfg["std"]))
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


class VitPatches(nn.Module):
    """The patch features of some blocks of a timm vision transformer."""

    def __init__(self, vit: nn.Module, feature: str, blocks: Sequence[int] = (), norm: bool = True) -> None:
        """Wrap ``vit``, which ends with the last block that is needed.

        ``feature`` is "tokens" (what blocks put out; ``norm``: through the network's last norm), or "keys" or
        "values" of their attention. Values went through its output projection, as if every patch attended to
        itself only (MaskCLIP: Zhou et al., 2022). ``blocks`` counts from 0; empty: the last.
        """
        super().__init__()
        self.vit: Any = vit
        self.feature = feature
        self.blocks = list(blocks)
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised [B, 3, H, W] to [B, C, H / patch, W / patch], several blocks one after the other in C."""
        if self.feature == "tokens":
            maps = self.vit.forward_intermediates(
                x, indices=self.blocks or 1, norm=self.norm, intermediates_only=True
            )
        else:
            maps = self._of_attention(x)
        return maps[-1] if len(maps) == 1 else torch.cat(maps, dim=1)

    def _of_attention(self, x: torch.Tensor) -> list[torch.Tensor]:
        # keys and values are no output of any block: they are made anew from what its attention got
        caught: dict[int, torch.Tensor] = {}
        handles = []
        blocks = self.blocks or [len(self.vit.blocks) - 1]
        try:
            for index in blocks:
                attention = getattr(self.vit.blocks[index], "attn", None)
                if attention is not None:
                    hook = _keeper(caught, index)
                    handles.append(attention.register_forward_pre_hook(hook))
            self.vit.forward_features(x)
        finally:
            for handle in handles:
                handle.remove()
        side = self.vit.patch_embed.feat_ratio(as_scalar=False)
        grid = (x.shape[2] // side[0], x.shape[3] // side[1])
        prefix = getattr(self.vit, "num_prefix_tokens", 0)
        maps = []
        for index in blocks:
            found = None if index not in caught else self._projected(index, caught[index])
            if found is not None:  # [B, tokens, C], or [B, h, w, C]
                found = found.flatten(1, -2)[:, prefix:].transpose(1, 2)
            if found is None or found.shape[0] != len(x) or found.shape[2] != grid[0] * grid[1]:
                raise UserError(
                    f"Block {index} of this backbone does not show its {self.feature}; "
                    "set model.feature to 'tokens' or model.blocks to another."
                )
            maps.append(found.reshape(len(x), -1, *grid))
        return maps

    def _projected(self, index: int, x: torch.Tensor) -> torch.Tensor | None:
        """Return keys, or values through the output projection, of a block's attention for its input."""
        attention = self.vit.blocks[index].attn
        keys = self.feature == "keys"
        if isinstance(getattr(attention, "qkv", None), nn.Linear):
            bias = attention.qkv.bias
            if getattr(attention, "q_bias", None) is not None:  # BEiT and EVA keep it beside the weights
                bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
            found = F.linear(x, attention.qkv.weight, bias).chunk(3, dim=-1)[1 if keys else 2]
        elif getattr(attention, "k_proj", None) is not None:
            found = (attention.k_proj if keys else attention.v_proj)(x)
        else:
            return None
        if keys:
            return found
        inner = getattr(attention, "norm", None)
        values: torch.Tensor = attention.proj(found if inner is None else inner(found))
        return values


def _keeper(caught: dict[int, torch.Tensor], index: int) -> Any:
    def keep(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        caught[index] = inputs[0]

    return keep
