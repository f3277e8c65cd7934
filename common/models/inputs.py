"""Inputs of a backbone: its pixels, its weights, and the facts of each architecture.

Everything here is cheap and imports neither timm nor torchvision, so that a site that trains from its
feature cache can tell whether the cache still fits without paying for the backbone.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from common.errors import UserError
from common.registry import Registered, Registry
from common.settings.unsupervised import Model

VIT = "vit"
"""The family of timm's vision transformers, to which every name belongs that is not registered itself."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}


@dataclass(frozen=True)
class BackboneFacts:
    """What others ask of a backbone.

    Attributes:
        weights_from: the library whose pretrained weights it takes.
        settings: fields of ``model`` on which its features depend besides size, crop and normalization.
        stride: pixels between features whose first is centered on pixel 0; None: patches that tile the input.
    """

    weights_from: str
    settings: tuple[str, ...]
    stride: int | None


BACKBONES = Registry[Callable[[Model, int], Any], BackboneFacts]("backbone", "common.models.backbones")
"""Loaders by name: (model, seed of random weights) -> `common.models.backbone.Backbone`, on the CPU."""


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
    return {name: getattr(model, name) for name in (*always, *backbone_entry(model).facts.settings)}


@functools.lru_cache(maxsize=16)
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file once per process and version (size and time are part of the memory's key)."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
