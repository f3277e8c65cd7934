"""A network with the modules of DeepLabV3-MobileNetV2, narrow enough that a test can train a federation of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from common.models import deeplab
from common.models.operators import prepare_torchvision


@contextmanager
def small_network() -> Iterator[None]:
    """Build networks of 0.5 instead of 12.6 million parameters: a tenth of the backbone's width, 8 channels in the head."""
    prepare_torchvision()
    from torchvision import models

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "mobilenet_v2", partial(models.mobilenet_v2, width_mult=0.1))
        patch.setattr(deeplab, "WIDTH", 8)
        yield
