"""Frozen backbones: images in, patch features out. Each architecture is a file in ``common/models/backbones``.

Their inputs, the identity of their weights and the facts of each are known without timm and torchvision: a site
that trains from its feature cache can tell whether the cache still fits without paying for the backbone.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from common.errors import UserError
from common.models.dense import Dense
from common.registry import Registered, Registry
from common.seeds import derive
from common.settings.unsupervised import Model
from common.system.device import choose_device

# Mean and standard deviation of ImageNet's training images per channel, in 0..1
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Mean and std where every image is brought to mean 0 and std 1 by itself
PER_IMAGE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
# An image of one color is not blown up to noise
MIN_SPREAD = 0.02
# The family of timm's networks, to which every name belongs that is not registered itself
VIT = "vit"

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}


@dataclass(frozen=True)
class BackboneFacts:
    """What others ask of a backbone.

    Attributes:
        weights_from: the library whose pretrained weights it takes.
        settings: fields of ``model`` on which its features depend besides size, crop and normalization.
        stride: pixels between features whose first is centered on pixel 0; None: patches that tile the input.
        unit: of what its sides have to be multiples, where no name says it; 0: a patch of 16.
        origin: license of its pretrained weights, and on what they were trained.
    """

    weights_from: str
    settings: tuple[str, ...]
    stride: int | None
    unit: int = 0
    origin: str = "license unknown"


# Loaders by name: (model, seed of random weights) -> `Backbone`, on the CPU
BACKBONES = Registry[Callable[[Model, int], Any], BackboneFacts]("backbone", "common.models.backbones")


def backbone_entry(model: Model) -> Registered[Callable[[Model, int], Any], BackboneFacts]:
    """Return what is registered for a backbone's name."""
    return BACKBONES.entry(model.backbone if model.backbone in BACKBONES.names() else VIT)


def crop_box(height: int, width: int, model: Model) -> tuple[float, float, float, float]:
    """Return the part of a picture that the backbone sees: left, top, right, bottom in source pixels.

    ``crop = "none"`` sees everything (and squashes it); ``"center"`` sees the largest centred window
    with the proportions of the input, which is the same as resizing the shorter side and cropping.
    """
    if model.crop == "none":
        return 0.0, 0.0, float(width), float(height)
    scale = min(height / model.height, width / model.width)
    left, top = (width - scale * model.width) / 2, (height - scale * model.height) / 2
    return left, top, width - left, height - top


def prepare_image(image: NDArray[np.uint8], model: Model) -> torch.Tensor:
    """Resize (and crop) a picture to the backbone's input; normalisation is left to the backbone.

    Args:
        image: RGB, uint8 [H, W, 3].
        model: ``height``, ``width``, ``resize`` and ``crop`` say how.

    Returns:
        float32 [3, height, width] in 0..1. Shrinking is anti-aliased unless ``resize`` is "nearest".
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected a uint8 RGB picture [H, W, 3], got {image.dtype} {list(image.shape)}")
    size = (model.width, model.height)
    height, width = image.shape[:2]
    if (width, height) != size:
        resized = Image.fromarray(image).resize(size, _FILTERS[model.resize], crop_box(height, width, model))
        image = np.asarray(resized, dtype=np.uint8)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255.0)


def weights_key(model: Model, seed: int) -> str:
    """Return a cheap identity of the backbone's weights, known before anything is loaded.

    ``file:SHA256`` for a local file, ``random:SEED``, or ``timm:NAME`` / ``torchvision:NAME`` for
    pretrained weights. Raises `UserError` where the file is missing or unreadable.
    """
    if model.weights == "random":
        return f"random:{seed}"
    if model.weights == "pretrained":
        return f"{backbone_entry(model).facts.weights_from}:{model.backbone}"
    path = weights_path(model)
    try:
        state = path.stat()
        return f"file:{_file_sha256(path, state.st_size, state.st_mtime_ns)}"
    except OSError as error:
        raise UserError(
            f"Weights file {path} cannot be read ({error.strerror or error}); check its permissions."
        ) from None


def weights_path(model: Model) -> Path:
    """Return the weights file that ``model.weights`` names; `UserError` where there is none."""
    path = Path(model.weights).expanduser()
    if not path.is_file():
        raise UserError(
            f"Weights file {path} does not exist (looked from {Path.cwd()}); "
            "set model.weights to 'pretrained', 'random' or the path of a safetensors file."
        )
    return path


def backbone_settings(model: Model) -> dict[str, str | int]:
    """Return the settings on which features depend, and no others: changing one makes new features."""
    always = ("backbone", "height", "width", "resize", "crop", "normalize")
    found = {name: getattr(model, name) for name in (*always, *backbone_entry(model).facts.settings)}
    for name in ("blocks", "final_norm", "stride", "window", "scales"):  # keys are as before there were these
        if getattr(model, name) != Model.model_fields[name].default:
            found[name] = getattr(model, name)
    return found


def corner_stride(model: Model) -> int | None:
    """Return the pixels between features whose first is centered on pixel 0; None: features tile the input."""
    own = backbone_entry(model).facts.stride
    return own and (model.stride or own)


@lru_cache(maxsize=16)
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file once per process and version (size and time are part of the memory's key)."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Backbone(nn.Module):
    """A frozen feature extractor that owns its normalisation.

    Frozen for good: no parameter asks for a gradient, and `train` leaves it in eval mode (so batch
    norms keep their statistics and nothing is dropped).

    Attributes:
        channels: C, channels of a patch feature.
        grid: (h, w), patches of a picture of the configured size.
        size: (H, W), the configured input size in pixels.
        weights_hash: sha256 (hex) of everything the model holds, normalisation included.
    """

    extractor: Any
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        extractor: nn.Module,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        per_image: bool = False,
        dense: Dense | None = None,
    ) -> None:
        """Freeze ``extractor``: normalised [B, 3, H, W] -> [B, C, h, w].

        ``per_image`` gives every picture mean 0 and standard deviation 1 in each channel first. ``dense`` says
        how the extractor is passed over a picture, None: once.
        """
        super().__init__()
        self.dense = dense or Dense(own=1, corner=False, stride=1)
        self.per_image = per_image
        self.extractor = extractor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.size = size
        self.requires_grad_(False)
        self.train(False)
        with torch.no_grad():  # one picture tells the truth about channels and grid
            _, self.channels, *grid = self.dense.features(self.extractor, torch.zeros(1, 3, *size)).shape
        self.grid: tuple[int, int] = (grid[0], grid[1])
        # features are told apart by all that made them, normalization included
        self.weights_hash = state_hash(self)

    @torch.no_grad()
    def resized(self, size: tuple[int, int]) -> Self:
        """Return the same network for images of another size (H, W); nothing is copied."""
        other = copy.copy(self)
        other.size = size
        grid = self.dense.features(self.extractor, self.mean.new_zeros(1, 3, *size)).shape[2:]
        other.grid = (grid[0], grid[1])
        return other

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map pictures, float [B, 3, H, W] in 0..1, to token-major features [B, h*w, C].

        Raises `ValueError` where the pictures do not have the configured size.
        """
        if tuple(images.shape[1:]) != (3, *self.size):
            raise ValueError(
                f"expected pictures [B, 3, {self.size[0]}, {self.size[1]}], got {list(images.shape)}"
            )
        if self.per_image:
            # light and tint of an image are gone before mean and std apply
            spread = images.std(dim=(2, 3), keepdim=True).clamp(min=MIN_SPREAD)
            images = (images - images.mean(dim=(2, 3), keepdim=True)) / spread
        features = self.dense.features(self.extractor, (images - self.mean) / self.std)
        return features.flatten(2).transpose(1, 2)


def load_backbone(model: Model, seed: int, device: str | torch.device | None = None) -> Backbone:
    """Build the frozen backbone that ``model`` describes and put it on a device.

    Args:
        model: name, weights, input size and what counts as a feature.
        seed: of random weights (``weights = "random"``); the global generators are left alone.
        device: see `common.system.device.choose_device`.

    Raises:
        UserError: unknown name, size that does not fit the patch, weights that are missing or do not
            fit, or pretrained weights without a connection.
    """
    place = choose_device(device)
    backbone: Backbone = backbone_entry(model).value(model, seed)
    return backbone.to(place)


@contextmanager
def seeded_constructors(seed: int) -> Iterator[None]:
    """Let constructors that draw from torch's global generator draw from ``seed``, then put it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "backbone"))
        yield


def state_hash(net: nn.Module) -> str:
    """Return the sha256 (hex) of names, dtypes, shapes and bytes of a state dict, in order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name}|{array.dtype.str}|{list(array.shape)}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


_DESCRIBED_ON_IMPORT = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache
def prepare_torchvision() -> torch.library.Library | None:
    """Make ``import torchvision`` work beside any torch; call it before torchvision or timm is imported.

    Returns what holds the declarations (they live as long as it does), or None where none were needed.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    else:
        return None
    # The wheel on the default package index is built for CUDA. Beside a CPU build of torch its compiled operators
    # cannot be loaded, and then the import fails while it describes them. The frozen backbones use none of them:
    # declaring their signatures is enough.
    declared = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for signature in _DESCRIBED_ON_IMPORT:
        declared.define(signature)  # type: ignore[no-untyped-call]
    import torchvision  # noqa: F401

    return declared
