"""Joint transforms of an image and its label, before a training step and before scoring.

Every call draws the same count of numbers, and each transform looks at its own: switching one on or off
leaves what the others do as it was, so that two settings can be compared on the same crops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from common.data.classes import IGNORE
from common.settings.network import Transforms

# What lies where there is no image: black, and `IGNORE` in the label
IMAGE_FILL = 0
# By how much a resized crop may change the proportions of things, either way
STRETCH = 4 / 3

Pair = tuple[torch.Tensor, torch.Tensor | None]


class TransformDraws(NamedTuple):
    """One number in [0, 1) per decision."""

    scale: float
    rotation: float
    top: float
    left: float
    area: float
    stretch: float
    flip: float
    brightness: float
    contrast: float
    saturation: float


def draw_decisions(generator: torch.Generator) -> TransformDraws:
    """Draw all decisions of one image; advances ``generator`` by the same amount whatever the settings."""
    return TransformDraws(
        *torch.rand(len(TransformDraws._fields), generator=generator, dtype=torch.float64).tolist()
    )


@dataclass(frozen=True)
class JointTransform:
    """The random changes of `config.Transforms`, in the order of its fields."""

    transforms: Transforms

    def __call__(self, image: torch.Tensor, label: torch.Tensor | None, generator: torch.Generator) -> Pair:
        """Return image uint8 [3, h, w] and label uint8 [h, w] (None stays None).

        Args:
            image: uint8 [3, H, W]; it is not written to, but the result may share its memory.
            label: train ids with 255 = ignore, uint8 [H, W].
            generator: where every random number comes from.

        Where the result shows nothing of the image it is 0, and the label 255. With ``crop`` "none" the
        size follows from resize and scale; otherwise it is ``height`` x ``width``. Raises `ValueError`
        where types or sizes do not fit.
        """
        image, _, label = self.views(image, label, generator)
        return image, label

    def views(
        self, image: torch.Tensor, label: torch.Tensor | None, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the changed image, the same cut with its own colours, and the label.

        The second is what a teacher sees whose student has it harder. See `__call__`.
        """
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"expected an image uint8 [3, H, W], got {image.dtype} {list(image.shape)}")
        if label is not None and (label.dtype != torch.uint8 or label.shape != image.shape[1:]):
            raise ValueError(
                f"expected a label uint8 {list(image.shape[1:])}, got {label.dtype} {list(label.shape)}"
            )
        drawn = draw_decisions(generator)
        pair = self._crop(self._rotate(self._resize((image, label), drawn), drawn), drawn)
        if drawn.flip < self.transforms.flip:
            pair = mirror(pair)
        return self._colours(pair[0], drawn), pair[0], pair[1]

    def _resize(self, pair: Pair, drawn: TransformDraws) -> Pair:
        """Resize to the fixed size and scale in one step: pixels are interpolated once."""
        settings = self.transforms
        height, width = settings.resize_height or pair[0].shape[1], settings.resize_width or pair[0].shape[2]
        factor = _between(settings.scale_min, settings.scale_max, drawn.scale)
        return resize(pair, max(1, round(height * factor)), max(1, round(width * factor)))

    def _rotate(self, pair: Pair, drawn: TransformDraws) -> Pair:
        largest = self.transforms.rotation
        return rotate(pair, _between(-largest, largest, drawn.rotation)) if largest else pair

    def _crop(self, pair: Pair, drawn: TransformDraws) -> Pair:
        settings = self.transforms
        high, wide = pair[0].shape[1:]
        if settings.crop == "random":
            top, left = _offset(high, settings.height, drawn.top), _offset(wide, settings.width, drawn.left)
            return window(pair, top, left, settings.height, settings.width)
        if settings.crop == "resized":
            height, width = share_of_area(
                (high, wide),
                _between(settings.area_min, settings.area_max, drawn.area),
                settings.width / settings.height * STRETCH ** _between(-1, 1, drawn.stretch),
            )
            top, left = _offset(high, height, drawn.top), _offset(wide, width, drawn.left)
            return resize(window(pair, top, left, height, width), settings.height, settings.width)
        return pair

    def _colours(self, image: torch.Tensor, drawn: TransformDraws) -> torch.Tensor:
        jitter = self.transforms.jitter
        if not jitter:
            return image
        brightness, contrast, saturation = (
            _between(1 - jitter, 1 + jitter, u) for u in (drawn.brightness, drawn.contrast, drawn.saturation)
        )
        return recolour(image, brightness, contrast, saturation)


def image_tensor(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return a picture uint8 [H, W, 3] as uint8 [3, H, W] over the same memory."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def eval_image(image: torch.Tensor, transforms: Transforms) -> torch.Tensor:
    """Return an image uint8 [3, H, W] at the size at which it is scored; nothing random, no crop."""
    # labels stay as they are: predictions go back to the size of the label, not the other way round
    height, width = transforms.eval_height or image.shape[1], transforms.eval_width or image.shape[2]
    return resize((image, None), height, width)[0]


def resize(pair: Pair, height: int, width: int) -> Pair:
    """Resize to ``height`` x ``width``: the image bilinear and antialiased, the label to nearest centres."""
    from torchvision.transforms.v2.functional import resize_image

    image, label = pair
    if image.shape[1:] == (height, width):
        return pair
    image = resize_image(image, [height, width], antialias=True)
    if label is not None:
        # plain "nearest" shifts the label against the image by up to half a pixel
        label = functional.interpolate(label[None, None], (height, width), mode="nearest-exact")[0, 0]
    return image, label


def rotate(pair: Pair, degrees: float) -> Pair:
    """Turn about the middle, counter-clockwise; the size stays and the empty corners are filled."""
    from torchvision.transforms.v2.functional import InterpolationMode, rotate_image, rotate_mask

    image, label = pair
    image = rotate_image(image, degrees, InterpolationMode.BILINEAR, fill=IMAGE_FILL)
    return image, None if label is None else rotate_mask(label, degrees, fill=IGNORE)


def window(pair: Pair, top: int, left: int, height: int, width: int) -> Pair:
    """Cut a window of ``height`` x ``width`` pixels; what of it lies outside the image is filled."""
    image, label = pair
    high, wide = image.shape[1:]
    margins = (-left, left + width - wide, -top, top + height - high)
    image = functional.pad(image, margins, value=IMAGE_FILL)
    return image, None if label is None else functional.pad(label, margins, value=IGNORE)


def mirror(pair: Pair) -> Pair:
    """Swap left and right."""
    return pair[0].flip(-1), None if pair[1] is None else pair[1].flip(-1)


def share_of_area(size: tuple[int, int], share: float, proportions: float) -> tuple[int, int]:
    """Return height and width of a window with a share (0..1] of an image's area, which it fits into.

    ``proportions`` (width / height) are kept as far as the image allows and give way before the share
    does.
    """
    high, wide = size
    area = share * high * wide
    # rejecting shapes that do not fit, as is common, would turn large shares into one fixed central crop
    proportions = min(max(proportions, area / high**2), wide**2 / area)
    height, width = math.sqrt(area / proportions), math.sqrt(area * proportions)
    return min(high, max(1, round(height))), min(wide, max(1, round(width)))


def recolour(image: torch.Tensor, brightness: float, contrast: float, saturation: float) -> torch.Tensor:
    """Change the colours of an image uint8 [3, H, W] by factors around 1.

    Contrast is relative to the mean grey of the image. Rounds once, at the end.
    """
    from torchvision.transforms.v2.functional import (
        adjust_brightness_image,
        adjust_contrast_image,
        adjust_saturation_image,
    )

    changed: torch.Tensor = adjust_brightness_image(image.float() / 255, brightness)
    changed = adjust_saturation_image(adjust_contrast_image(changed, contrast), saturation)
    return changed.mul(255).round_().to(torch.uint8)


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _offset(size: int, cut: int, share: float) -> int:
    """Return where a cut begins; negative where the cut is larger, so that the image lies anywhere in it."""
    room = size - cut
    return min(0, room) + int(share * (abs(room) + 1))
