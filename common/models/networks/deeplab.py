"""DeepLabV3 on MobileNetV2: images to class scores by atrous convolutions.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (2017), section 3.3; Sandler et
al., "MobileNetV2" (2018). The backbone is torchvision's, the head computes what torchvision's computes and
has its names, so that published state dicts fit after a change of prefix. 12,651,792 parameters for 16 classes,
of which 82 % are in the head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from common.models.network import NETWORKS, NetworkFacts, PooledNorm, SeededDropout, SegmentationNetwork
from common.settings.network import Network, numbers

# Channels of MobileNetV2's last convolution
FEATURES = 1280

# Channels of every part of the head
WIDTH = 256


class AtrousConv(nn.Conv2d):
    """A 3 x 3 convolution with holes that leaves out the taps which can only see padding."""

    def __init__(self, channels: int, out_channels: int, rate: int) -> None:
        super().__init__(channels, out_channels, 3, padding=rate, dilation=rate, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map [B, channels, h, w] to [B, out_channels, h, w]."""
        rate = int(self.dilation[0])
        # At output stride 32 an image of 512 rows has 16 rows of features, fewer than the usual rates 24 and 36:
        # the upper and lower taps add nothing but zeros there, at two thirds of the cost. The sum is the same
        # without them, and so is the gradient: that of a tap left out is zero either way.
        reach = [rate if side > rate else 0 for side in input.shape[2:]]
        rows, columns = (slice(None) if padding else slice(1, 2) for padding in reach)
        return F.conv2d(input, self.weight[:, :, rows, columns], None, 1, tuple(reach), rate)


def _normed(conv: nn.Conv2d) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()]


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling: what is here, at three distances around, and in the image at all."""

    def __init__(self, channels: int, rates: Sequence[int], dropout: float) -> None:
        super().__init__()
        pooling = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, WIDTH, 1, bias=False), PooledNorm(WIDTH)]
        self.convs = nn.ModuleList(
            [
                nn.Sequential(*_normed(nn.Conv2d(channels, WIDTH, 1, bias=False))),
                *(nn.Sequential(*_normed(AtrousConv(channels, WIDTH, rate))) for rate in rates),
                nn.Sequential(*pooling, nn.ReLU()),
            ]
        )
        branches = len(self.convs)
        self.project = nn.Sequential(
            *_normed(nn.Conv2d(branches * WIDTH, WIDTH, 1, bias=False)), SeededDropout(dropout)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, channels, h, w] to [B, 256, h, w]."""
        *local, pooled = [branch(x) for branch in self.convs]
        joined = torch.cat([*local, pooled.expand_as(local[0])], dim=1)
        projected: torch.Tensor = self.project(joined)
        return projected


class DeepLab(SegmentationNetwork):
    """One grid of features at the configured stride; ASPP looks around each cell at three distances."""

    def __init__(self, backbone: nn.Module, classes: int, network: Network) -> None:
        """Put a head on ``backbone``: normalized images -> [B, 1280, h, w] at the configured stride."""
        head = nn.Sequential(
            Aspp(FEATURES, numbers(network.rates), network.dropout),
            *_normed(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)),
            nn.Conv2d(WIDTH, classes, 1),
        )
        super().__init__(backbone, head, classes, network.normalize, int(network.output_stride))

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        """Return scores [B, classes, h, w] at the configured stride."""
        found: torch.Tensor = self.head(self.backbone(images))
        return found


@NETWORKS.register(
    "deeplab",
    summary="DeepLabV3 on MobileNetV2, 12.7 million parameters (50 MB)",
    facts=NetworkFacts("deeplabv3-mobilenet-v2", atrous=True),
)
def construct_deeplab(classes: int, network: Network) -> DeepLab:
    """Return the network with strides beyond the configured one traded for dilation."""
    from torchvision.models import mobilenet_v2

    backbone = mobilenet_v2(weights=None).features
    dilate(backbone, int(network.output_stride))
    return DeepLab(backbone, classes, network)


def dilate(backbone: nn.Module, output_stride: int) -> None:
    """Trade strides beyond ``output_stride`` for dilation; the weights and what they see stay the same."""
    stride, dilation = 1, 1
    for conv in backbone.modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        step = conv.stride[0]
        too_much = step > 1 and stride == output_stride
        if conv.kernel_size[0] > 1:
            conv.dilation = (dilation, dilation)
            conv.padding = (dilation, dilation)
        if too_much:
            conv.stride = (1, 1)
            dilation *= step  # from here on neighbours lie as many positions apart as were not skipped
        else:
            stride *= step
