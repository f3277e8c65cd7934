"""Small network on MobileNetV2: a light head on features of three strides, for devices that a network is shipped to.

The backbone keeps its stride of 32 and loses its last convolution. Its features of strides 8, 16 and 32 (torchvision's
blocks 6, 13 and 17) meet on the grid of the first, as in feature pyramids (Lin et al., 2017; Zhao et al., "ICNet",
2018). About 2.2 million parameters, 9 MB, whatever the number of classes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from common.models.network import NETWORKS, NetworkFacts, SegmentationNetwork
from common.settings.network import Network

STRIDE = 32

# Channels to which the features of each stride are brought; deeper ones say more
WIDTHS = {8: 48, 16: 96, 32: 128}

# Channels of the convolution over the joined features
JOINED = 128


def _normed(channels: int, width: int, size: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, size, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())


class JoiningHead(nn.Module):
    """Features of several strides, finest first -> scores on the finest grid."""

    def __init__(self, channels: list[int], classes: int) -> None:
        super().__init__()
        widths = list(WIDTHS.values())
        self.reduce = nn.ModuleList(
            _normed(given, width, 1) for given, width in zip(channels, widths, strict=True)
        )
        self.join = _normed(sum(widths), JOINED, 3)
        self.classify = nn.Conv2d(JOINED, classes, 1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Map [B, C_i, h_i, w_i] to [B, classes, h_0, w_0]."""
        fine, *coarse = [reduce(given) for reduce, given in zip(self.reduce, features, strict=True)]
        grid = fine.shape[2:]
        maps = [fine, *(F.interpolate(c, grid, mode="bilinear", align_corners=False) for c in coarse)]
        scores: torch.Tensor = self.classify(self.join(torch.cat(maps, dim=1)))
        return scores


class SmallNetwork(SegmentationNetwork):
    """A backbone at stride 32, tapped where each of three strides ends."""

    def __init__(self, backbone: nn.Sequential, classes: int, network: Network) -> None:
        """Put a head on ``backbone``, whose blocks each say by a strided convolution where a stride begins."""
        taps, channels = _taps(backbone)
        super().__init__(backbone, JoiningHead(channels, classes), classes, network.normalize, STRIDE)
        self.taps = taps
        self.unused = f"features.{len(backbone)}."

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        """Return scores [B, classes, h, w] at stride 8."""
        features, x = [], images
        for index, block in enumerate(self.backbone.children()):
            x = block(x)
            if index in self.taps:
                features.append(x)
        found: torch.Tensor = self.head(features)
        return found


def _taps(backbone: nn.Sequential) -> tuple[list[int], list[int]]:
    """Return index and channels of the last block of each stride in `WIDTHS`."""
    stride, last = 1, {}
    for index, block in enumerate(backbone):
        convs = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
        for conv in convs:
            stride *= conv.stride[0]
        last[stride] = (index, convs[-1].out_channels)
    taps = [last[wanted] for wanted in WIDTHS]
    return [index for index, _ in taps], [channels for _, channels in taps]


@NETWORKS.register(
    "small",
    summary="light head on MobileNetV2 at stride 32, 2.2 million parameters (9 MB)",
    facts=NetworkFacts("mobilenet-v2-small"),
)
def construct_small(classes: int, network: Network) -> SmallNetwork:
    """Return the network; the backbone ends before its last convolution, which serves image classes alone."""
    from torchvision.models import mobilenet_v2

    return SmallNetwork(mobilenet_v2(weights=None).features[:-1], classes, network)
