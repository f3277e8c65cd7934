"""What goes into the backbone: which pixels, and which weights?

Everything here is cheap and imports neither timm nor torchvision, so that a site that trains from its
feature cache can tell whether the cache still fits without paying for the backbone.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from common.errors import UserError
from common.settings.unsupervised import Model

MOBILENET = "mobilenet_v2"
"""The one backbone that is torchvision's and not timm's."""

CNN_STRIDE = 16
"""Pixels between neighbouring features of the CNN; feature i is centred on pixel 16 i (ViT: patch centres)."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}


def is_cnn(model: Model) -> bool:
    """Tell the convolutional backbone from the transformers."""
    return model.backbone == MOBILENET


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
        return f"{'torchvision' if is_cnn(model) else 'timm'}:{model.backbone}"
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
    settings: dict[str, str | int] = {
        "backbone": model.backbone,
        "height": model.height,
        "width": model.width,
        "resize": model.resize,
        "crop": model.crop,
        "normalize": model.normalize,
    }
    if is_cnn(model):
        return settings | {"stages": model.stages}
    return settings | {"depth": model.depth, "feature": model.feature}


@functools.lru_cache(maxsize=16)
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file once per process and version (size and time are part of the memory's key)."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
