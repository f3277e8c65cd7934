"""Segmentation networks: their registry, what they have in common, and the arrays of them that travel.

Each network is a file in ``common/models/networks``. Where its weights come from: ``common/models/weights.py``.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from common.models.backbone import prepare_torchvision
from common.models.parameter_groups import parameter_keys, statistics_keys
from common.models.weights import load_weights
from common.registry import Registry
from common.seeds import derive
from common.settings.network import Network, numbers

_Arrays = dict[str, np.ndarray]

# Mean and standard deviation of the input, for pixels in 0..1
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class PooledNorm(nn.BatchNorm2d):
    """The batch norm behind global pooling, where one image has one value per channel: it measures none."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise [B, C, 1, 1]."""
        # one value has no variance: torch refuses, and normalising it by itself would erase it; the running
        # statistics normalise it instead, as in evaluation, and stay as they are
        if self.training and len(input) == 1:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


class SeededDropout(nn.Module):
    """Dropout that draws from a generator of its own, not from torch's global one."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop entries of ``x`` and scale the others so that the mean stays; do nothing in eval mode."""
        if not self.training or self.p == 0:
            return x
        if self.generator is None:
            raise ValueError("Dropout has no generator; call DeepLab.seed_dropout, or eval() before scoring.")
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)
        return x * kept.div_(1 - self.p)


class SegmentationNetwork(nn.Module, ABC):
    """Images float [B, 3, H, W] in 0..1 -> logits float32 [B, classes, H, W], for sides of any length.

    ``backbone`` and ``head`` hold all parameters; mean and standard deviation of the input are settings, not
    state. Training with dropout needs `seed_dropout` first. One image is a batch.
    """

    mean: torch.Tensor
    std: torch.Tensor
    # Start of the names, in torchvision's files, of what the network does without
    unused = "classifier."

    def __init__(
        self, backbone: nn.Module, head: nn.Module, classes: int, normalize: str, output_stride: int
    ) -> None:
        """Join ``backbone`` and ``head``; ``output_stride`` is pixels per cell of the deepest features."""
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.classes = classes
        self.output_stride = output_stride
        for name, values in zip(("mean", "std"), NORMALIZATIONS[normalize], strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    @abstractmethod
    def scores(self, images: torch.Tensor) -> torch.Tensor:
        """Return scores [B, classes, h, w] of normalized images on the head's own grid."""

    def seed_dropout(self, seed: int) -> None:
        """Let the dropout of training draw from ``seed``, on the device where the network is now."""
        for module in self.modules():
            if isinstance(module, SeededDropout):
                module.generator = torch.Generator(self.mean.device).manual_seed(seed)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class; raises ValueError for images of another form."""
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"expected float images [B, 3, H, W] in 0..1, got {images.dtype} {list(images.shape)}"
            )
        # asked first, since an export would else take the length of its example for the only one
        if self._norms_measure() and len(images) == 1 and max(images.shape[2:]) <= self.output_stride:
            raise ValueError(
                f"one image of {images.shape[2]} x {images.shape[3]} pixels is a single feature at output stride "
                f"{self.output_stride}, which has no variance that a batch norm could measure; give more or larger "
                "images"
            )
        # oneDNN and cuDNN both compute depthwise convolutions faster with channels last
        images = images.contiguous(memory_format=torch.channels_last)
        scores = self.scores((images - self.mean) / self.std)
        # float32 from here on: half precision would blur the interpolated scores of close classes
        return F.interpolate(scores.float(), images.shape[2:], mode="bilinear", align_corners=False)

    def _norms_measure(self) -> bool:
        """Tell whether a batch norm takes mean and variance from the batch; the pooled one can do without."""
        norms = (module for module in self.modules() if isinstance(module, nn.BatchNorm2d))
        return any(norm.training and not isinstance(norm, PooledNorm) for norm in norms)


@dataclass(frozen=True)
class NetworkFacts:
    """What others ask of a network.

    Attributes:
        identity: its name in signatures and exported files.
        atrous: ``output-stride``, ``rates`` and ``dropout`` of section ``network`` act; else none may be set.
    """

    identity: str
    atrous: bool = False


# Constructors by name: (classes, settings) -> a network whose parameters torch's global generator drew
NETWORKS = Registry[Callable[[int, Network], SegmentationNetwork], NetworkFacts](
    "network", "common.models.networks"
)


def build_network(classes: int, network: Network, seed: int) -> SegmentationNetwork:
    """Build the network of the settings with its starting weights, on the CPU and in training mode.

    Args:
        classes: C, the number of classes that are scored.
        network: architecture, and ``weights``: 'pretrained', 'random' or files (`load_weights`).
        seed: of all that no file gives; the global generators are left alone.

    Raises:
        UserError: an unknown architecture; weights that are missing or do not fit, or are out of reach.
    """
    construct = NETWORKS.get(network.architecture)
    prepare_torchvision()
    with torch.random.fork_rng(devices=[]):  # constructors draw from the CPU's global generator
        torch.default_generator.manual_seed(derive(seed, "network"))
        model = construct(classes, network)
    load_weights(model, network.weights, model.unused)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def network_signature(classes: int, network: Network) -> str:
    """Return a sha256 (hex) of the architecture: equal where the same arrays mean the same function."""
    known = NETWORKS.facts(network.architecture)
    facts = {"architecture": known.identity, "classes": classes, "normalize": network.normalize}
    if known.atrous:
        facts |= {"output-stride": int(network.output_stride), "rates": numbers(network.rates)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def network_to_arrays(model: nn.Module) -> tuple[_Arrays, _Arrays]:
    """Copy what travels: all parameters, and all running statistics, as float32 by state-dict name."""
    state = model.state_dict()

    def copied(keys: frozenset[str]) -> _Arrays:
        return {
            key: np.array(state[key].detach().cpu().numpy(), dtype=np.float32, order="C")
            for key in state
            if key in keys
        }

    return copied(parameter_keys(model)), copied(statistics_keys(model))


def load_arrays(
    model: nn.Module, weights: Mapping[str, np.ndarray], statistics: Mapping[str, np.ndarray]
) -> None:
    """Load what `network_to_arrays` returned, of any float type; nothing is changed where anything is wrong.

    Raises ValueError naming the first array that is missing, left over, of another shape, not finite, or a
    negative variance.
    """
    state = model.state_dict()
    for given, keys in ((weights, parameter_keys(model)), (statistics, statistics_keys(model))):
        for key in sorted(given.keys() | keys):
            _check_array(key, given.get(key), state[key] if key in keys else None)
    with torch.no_grad():
        for key, array in (*weights.items(), *statistics.items()):
            state[key].copy_(torch.from_numpy(np.asarray(array, dtype=np.float32)))


def _check_array(key: str, array: np.ndarray | None, tensor: torch.Tensor | None) -> None:
    advice = "use the classes and network settings that the arrays were made with"
    if tensor is None:
        raise ValueError(f"Array '{key}' was given, but the network has none of this name; {advice}.")
    if array is None:
        raise ValueError(f"Array '{key}' of the network is missing; {advice}.")
    if array.shape != tuple(tensor.shape):
        raise ValueError(f"Array '{key}' is {array.shape}, {tuple(tensor.shape)} was expected; {advice}.")
    if not np.isfinite(array).all():
        raise ValueError(f"Array '{key}' holds NaN or infinity.")
    if key.endswith("running_var") and array.min(initial=0.0) < 0:
        raise ValueError(f"Array '{key}' holds a negative variance.")
