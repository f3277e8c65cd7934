"""What is trained: the head that turns a frozen patch feature into a code, and where centroids start.

The head of STEGO, which FUSS federates: a linear branch plus a two-layer branch, patch by patch,

    code = W1 d1(f) + b1 + W3 relu(W2 d2(f) + b2) + b3,

with d1, d2 independent channel dropouts. For 384 channels and 70 code entries it has 201,740 parameters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from common.seeds import numpy_generator, torch_generator
from common.settings.unsupervised import Model


def channel_mask(
    batch: int, channels: int, dropout: float, generator: torch.Generator | None
) -> torch.Tensor | None:
    """Draw which channels an image keeps, rescaled so that the mean stays: float32 [batch, 1, channels].

    The mask is the same at every position of an image (Dropout2d). ``None`` where nothing is dropped.
    """
    if dropout == 0:
        return None
    if generator is None:
        raise ValueError("Dropout needs an explicit generator; pass one, or call .eval() on the head first.")
    # one for all positions of an image, hence it commutes with sampling: sample first, mask the few samples after
    kept = torch.rand(batch, 1, channels, generator=generator) >= dropout
    return kept.float() / (1 - dropout)


class SegmentationHead(nn.Module):
    """Project patch features [B, C, h, w] to codes [B, dim, h, w].

    ``linear.*`` and (if ``nonlinear``) ``nonlinear.*`` are the parameters; no buffers, so that the
    state is exactly what is trained and averaged. Dropout acts in training mode only and draws from
    the generator of the call.
    """

    def __init__(self, channels: int, dim: int = 70, dropout: float = 0.1, nonlinear: bool = True) -> None:
        super().__init__()
        self.channels, self.dim, self.dropout = channels, dim, dropout
        self.linear = nn.Linear(channels, dim)
        self.nonlinear = (
            nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, dim))
            if nonlinear
            else None
        )

    def draw_masks(
        self, batch: int, generator: torch.Generator | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Draw the two branches' channel masks for a batch (``None`` in eval mode)."""
        dropout = self.dropout if self.training else 0.0
        device = self.linear.weight.device
        # drawn on the CPU, so that a device does not change the numbers
        masks = [channel_mask(batch, self.channels, dropout, generator) for _ in range(2)]
        first, second = (None if mask is None else mask.to(device) for mask in masks)
        return first, second

    def project(
        self, tokens: torch.Tensor, linear: torch.Tensor | None = None, nonlinear: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Project token-major features [..., C] to codes [..., dim]; the masks broadcast against them."""
        code: torch.Tensor = self.linear(tokens if linear is None else tokens * linear)
        if self.nonlinear is not None:
            code = code + self.nonlinear(tokens if nonlinear is None else tokens * nonlinear)
        return code

    def forward(self, features: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Return the codes [B, dim, h, w] of features [B, C, h, w]; training with dropout needs a generator."""
        if features.dim() != 4 or features.shape[1] != self.channels:
            raise ValueError(
                f"The head expects features [B, {self.channels}, h, w] but was given "
                f"{list(features.shape)}; it was built for another backbone."
            )
        batch, _, height, width = features.shape
        masks = self.draw_masks(batch, generator)
        code = self.project(features.flatten(2).transpose(1, 2), *masks)
        return code.transpose(1, 2).reshape(batch, self.dim, height, width)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all linear layers anew: uniform in +-1/sqrt(fan in), weights and biases (a 1x1 convolution's default)."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                for parameter in layer.parameters():
                    draw = torch.rand(parameter.shape, generator=generator)
                    parameter.copy_((2 * draw - 1) * bound)


def build_head(channels: int, model: Model, seed: int) -> SegmentationHead:
    """Build a head with parameters that follow from ``seed`` alone."""
    head = SegmentationHead(channels, model.dim, model.dropout, model.nonlinear)
    initialise(head, torch_generator(seed, "head"))
    return head


def frozen_copy(head: SegmentationHead) -> SegmentationHead:
    """Copy a head as a reference: no gradient, no dropout."""
    return copy.deepcopy(head).eval().requires_grad_(False)


def state_to_numpy(module: nn.Module) -> dict[str, np.ndarray]:
    """Copy a module's state to arrays, as it travels."""
    return {name: value.detach().cpu().numpy().copy() for name, value in module.state_dict().items()}


def load_numpy(module: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Load what `state_to_numpy` returned (any float type).

    Raises ValueError where names or shapes are not exactly the module's.
    """
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(array.shape) for name, array in arrays.items()}
    if given != expected:
        wrong = sorted(
            name for name in given.keys() | expected.keys() if given.get(name) != expected.get(name)
        )
        first = wrong[0]
        raise ValueError(
            f"Array '{first}' is {given.get(first, 'missing')}, {expected.get(first, 'no such array')} was "
            f"expected ({len(wrong)} arrays differ); use the backbone and model settings it was trained with."
        )
    module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})


def init_centroids(clusters: int, dim: int, seed: int) -> np.ndarray:
    """Draw starting centroids: float32 [clusters, dim], standard normal."""
    draw: np.ndarray = numpy_generator(seed, "centroids").standard_normal((clusters, dim), dtype=np.float32)
    return draw
