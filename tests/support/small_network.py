"""A network with the modules of DeepLabV3-MobileNetV2, small enough that a test can train a federation of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from common.models.backbone import prepare_torchvision
from common.models.networks import deeplab

BLOCKS = [[1, 16, 1, 1], [6, 24, 1, 2], [6, 32, 1, 2], [6, 64, 1, 2], [6, 160, 1, 2]]
"""One inverted residual a stage: expansion, channels, repetitions, stride."""


Blocks = list[list[int]]


def shrink_network(patch: pytest.MonkeyPatch, blocks: Blocks = BLOCKS) -> None:
    """Let networks of 0.3, not 12.6, million parameters be built: few and narrow blocks, 8 channels in the head."""
    prepare_torchvision()
    from torchvision import models

    small = partial(models.mobilenet_v2, width_mult=0.1, inverted_residual_setting=blocks)
    patch.setattr(models, "mobilenet_v2", small)
    patch.setattr(deeplab, "WIDTH", 8)


@contextmanager
def small_network(blocks: Blocks = BLOCKS) -> Iterator[None]:
    """Shrink networks for as long as the context lasts."""
    with pytest.MonkeyPatch.context() as patch:
        shrink_network(patch, blocks)
        yield
