"""timm's CNNs: one or several stages on one grid whose cells tile the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common.errors import UserError
from common.models.backbone import BACKBONES, Backbone, BackboneFacts
from common.settings.unsupervised import Model


@BACKBONES.register(
    "cnn",
    summary="any CNN of timm by its name, as resnet50, stages as model.blocks says; pretrained: from its hub",
    facts=BackboneFacts(
        weights_from="timm",
        settings=("depth", "feature"),
        stride=None,
        origin="as the card of the model on timm's hub says",
    ),
)
def _named(model: Model, seed: int) -> Backbone:
    raise UserError("Backbone 'cnn' stands for the CNNs of timm; give the name of one, for example resnet50.")


class CnnStages(nn.Module):
    """Stages of a timm CNN, concatenated on the grid of the coarsest of them.

    CNNs that pad their convolutions on both sides center their features on pixels 0, s, 2 s and so on. Their
    input is extended by half a stride on each side, and the outer features fall away: what is left lies in the
    middle of cells that tile the input, as patches do.

    Attributes:
        stride: pixels between features.
    """

    def __init__(self, net: Any, stages: Sequence[int]) -> None:
        """Keep ``net`` up to the deepest of ``stages``, indices of timm's ``feature_info``."""
        super().__init__()
        self.stages = sorted(set(stages))
        if hasattr(net, "prune_intermediate_layers"):
            net.prune_intermediate_layers(self.stages, prune_head=True)
        self.net = net.eval()
        # a side of 8 x 32 pixels and one more: those that pad on both sides have one feature more of it
        with torch.no_grad():
            even, odd = (
                [found.shape[3] for found in self._run(torch.zeros(1, 3, 64, side))] for side in (256, 257)
            )
        self._strides = [256 // cells for cells in even]
        self._corner = odd[-1] > even[-1]
        self.stride = max(self._strides)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised [B, 3, H, W] to [B, C, H / stride, W / stride]."""
        half = self.stride // 2
        if self._corner:
            x = F.pad(x, [half, half + 1, half, half + 1], mode="replicate")
        maps = []
        for found, stride in zip(self._run(x), self._strides, strict=True):
            factor = self.stride // stride
            if self._corner:
                if factor > 1:  # windows around the places of the coarse grid
                    found = F.avg_pool2d(
                        found, 2 * factor - 1, factor, padding=factor - 1, count_include_pad=False
                    )
                found = found[:, :, 1:-1, 1:-1]
            elif factor > 1:
                found = F.avg_pool2d(found, factor)
            maps.append(found)
        return torch.cat(maps, dim=1)

    def _run(self, x: torch.Tensor) -> list[torch.Tensor]:
        found: list[torch.Tensor] = self.net.forward_intermediates(
            x, indices=self.stages, intermediates_only=True
        )
        return found
