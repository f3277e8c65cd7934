"""torchvision's MobileNetV2 as a dilated CNN, whose features are several stages on the grid of stride 16."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
    Backbone,
    BackboneFacts,
    prepare_torchvision,
    seeded_constructors,
    weights_path,
)
from common.models.dense import Dense
from common.models.weights import load_fitting, read_safetensors, torchvision_pretrained
from common.settings.unsupervised import Model

_log = logging.getLogger(__name__)

# Pixels between neighboring features: what DeepLab uses; stride 32 loses thin things, 8 costs four times as much
_STRIDE = 16


@BACKBONES.register(
    "mobilenet_v2",
    summary="torchvision's MobileNetV2, stages as model.stages says, stride 16; pretrained: torchvision's ImageNet",
    facts=BackboneFacts(
        weights_from="torchvision",
        settings=("stages",),
        stride=_STRIDE,
        origin="BSD-3-Clause (torchvision), trained on ImageNet-1k with labels of whole images",
    ),
)
def _load_mobilenet(model: Model, seed: int) -> Backbone:
    prepare_torchvision()
    from torchvision.models import mobilenet_v2

    if model.height % _STRIDE != 1 or model.width % _STRIDE != 1:
        _log.warning(
            "input %d x %d: the features of %s lie exactly on the picture only for sides of 16 n + 1 pixels, "
            "for example %d x %d",
            model.height,
            model.width,
            model.backbone,
            *(side // _STRIDE * _STRIDE + 1 for side in (model.height, model.width)),
        )
    with seeded_constructors(seed):
        net = mobilenet_v2(weights=None)
    if model.weights != "random":
        pretrained = model.weights == "pretrained"
        source = "torchvision's file" if pretrained else f"Weights file {weights_path(model)}"
        tensors = torchvision_pretrained() if pretrained else read_safetensors(weights_path(model))
        net.classifier = nn.Identity()
        load_fitting(net, tensors, source, unused=lambda name: name.startswith("classifier."))
    stages = [int(stage) for stage in (model.blocks or model.stages).split(",")]
    if max(stages) >= len(net.features):
        raise UserError(
            f"model.blocks is {model.blocks}, but {model.backbone} has {len(net.features)} stages; "
            f"set it to indices from 0 to {len(net.features) - 1}."
        )
    per_image = model.normalize == "image"
    mean, std = PER_IMAGE if per_image else (IMAGENET_MEAN, IMAGENET_STD)
    return Backbone(
        MobileNetStages(net.features, stages),
        (model.height, model.width),
        mean,
        std,
        per_image=per_image,
        dense=Dense.of(model, _STRIDE, corner=True),
    )


class MobileNetStages(nn.Module):
    """Several stages of torchvision's MobileNetV2, concatenated on the grid of stride 16.

    Stages that torchvision computes at stride 32 keep stride 16 and dilate by 2, as in DeepLab (Chen et
    al., 2017): same weights, denser grid. Finer stages are averaged over a window centred on the same
    pixels (16 i, 16 j), so that all stages describe the same places for any input size.
    """

    def __init__(self, features: nn.Sequential, stages: Sequence[int]) -> None:
        """Keep ``features`` up to the deepest of ``stages``, torchvision's indices 0 to 18."""
        super().__init__()
        self.stages = tuple(stages)
        blocks: list[Any] = list(features[: max(stages) + 1])
        for index, block in enumerate(blocks):
            if 14 <= index <= 17:  # conv[1][0] is the depthwise convolution of the block
                depthwise = block.conv[1][0]
                if index == 14:
                    depthwise.stride = (1, 1)
                else:
                    # as in DeepLab: the taps lie where they would on the grid of stride 32
                    depthwise.dilation = depthwise.padding = (2, 2)
        self.features = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised [B, 3, H, W] to [B, C, ceil(H / 16), ceil(W / 16)]."""
        kept: dict[int, torch.Tensor] = {}
        for index, block in enumerate(self.features):
            x = block(x)
            if index in self.stages:
                kept[index] = _thin_out(x, _STRIDE // _stage_stride(index))
        return torch.cat([kept[stage] for stage in self.stages], dim=1)


def _stage_stride(index: int) -> int:
    """Return the stride of a stage of MobileNetV2, later stages dilated."""
    return 2 if index <= 1 else 4 if index <= 3 else 8 if index <= 6 else _STRIDE


def _thin_out(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Average windows centred on every ``factor``-th position: side n becomes ceil(n / factor)."""
    if factor == 1:
        return x
    # padding does not count: at the rim, too, a cell is a mean of features
    return F.avg_pool2d(x, 2 * factor - 1, factor, padding=factor - 1, count_include_pad=False)
