"""Which of a network's activations are the features of a place in the picture?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common.errors import UserError
from common.models.inputs import CNN_STRIDE


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
                    depthwise.dilation = depthwise.padding = (2, 2)
        self.features = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised [B, 3, H, W] to [B, C, ceil(H / 16), ceil(W / 16)]."""
        kept: dict[int, torch.Tensor] = {}
        for index, block in enumerate(self.features):
            x = block(x)
            if index in self.stages:
                kept[index] = _thin_out(x, CNN_STRIDE // _stage_stride(index))
        return torch.cat([kept[stage] for stage in self.stages], dim=1)


def _stage_stride(index: int) -> int:
    """Return the stride of a stage of MobileNetV2, later stages dilated."""
    return 2 if index <= 1 else 4 if index <= 3 else 8 if index <= 6 else CNN_STRIDE


def _thin_out(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Average windows centred on every ``factor``-th position: side n becomes ceil(n / factor)."""
    if factor == 1:
        return x
    return F.avg_pool2d(x, 2 * factor - 1, factor, padding=factor - 1, count_include_pad=False)
