"""Augmentation: another version of an image, and where each of its patches lies in the image.

The augmentation of STEGO's code: a crop of 80 to 100 %, mirrored or not, changed in colour, now and then
grey or blurred. A view follows from (seed, image, number) alone: it can be cached, and its geometry need
not be stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from common.seeds import numpy_generator

# weights of ITU-R BT.601, and the YIQ of NTSC: brightness first, then the plane of chroma
LUMA = (0.299, 0.587, 0.114)
_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
# as wide a kernel as STEGO uses: it cuts sigmas above 1 short
BLUR_TAPS = 5


@dataclass(frozen=True)
class Augmentation:
    """One view: the crop in fractions of the picture, and what happens to it.

    brightness, contrast, saturation: factors; hue: turn of the colour circle, in full turns; blur: sigma
    in pixels, 0 for none.
    """

    left: float = 0.0
    top: float = 0.0
    width: float = 1.0
    height: float = 1.0
    mirrored: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    grey: bool = False
    blur: float = 0.0

    @classmethod
    def draw(cls, seed: int, image: int, view: int) -> Augmentation:
        """Draw the given view of the given image."""
        generator = numpy_generator(seed, "augment", image, view)
        # ranges of STEGO; the order of draws is part of what a seed means
        area = generator.uniform(0.8, 1.0)
        shape = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = min(math.sqrt(area * shape), 1.0), min(math.sqrt(area / shape), 1.0)
        return cls(
            left=generator.uniform(0, 1 - width),
            top=generator.uniform(0, 1 - height),
            width=width,
            height=height,
            mirrored=bool(generator.random() < 0.5),
            brightness=generator.uniform(0.7, 1.3),
            contrast=generator.uniform(0.7, 1.3),
            saturation=generator.uniform(0.7, 1.3),
            hue=generator.uniform(-0.1, 0.1),
            grey=bool(generator.random() < 0.2),
            blur=generator.uniform(0.1, 2.0) if generator.random() < 0.5 else 0.0,
        )

    def apply(self, picture: torch.Tensor) -> torch.Tensor:
        """Return the view of a picture [3, H, W] in 0..1, of the same size."""
        _, high, wide = picture.shape
        x = self._across((torch.arange(wide) + 0.5) / wide) * 2 - 1
        y = self._down((torch.arange(high) + 0.5) / high) * 2 - 1
        places = torch.stack([x.expand(high, wide), y[:, None].expand(high, wide)], dim=-1)
        view = functional.grid_sample(
            picture[None], places[None], padding_mode="border", align_corners=False
        )[0]
        view = (view * self.brightness).clamp(0, 1)
        # contrast is relative to the mean grey of the image, saturation to the grey of each pixel
        view = _blend(_grey(view).mean().expand_as(view), view, self.contrast)
        view = _blend(_grey(view).expand_as(view), view, self.saturation)
        if self.hue:
            view = _turn_hue(view, self.hue)
        if self.grey:
            view = _grey(view).expand_as(view)
        return (_blurred(view, self.blur) if self.blur else view).contiguous()

    def places(self, grid: tuple[int, int], tiled: bool) -> torch.Tensor:
        """Return where the view's patches lie in the picture's grid: [h*w, 2], as `sampling.bilinear` reads it.

        ``tiled`` patches cover the input side by side (ViT); otherwise the outer ones are centred on its
        rim (CNN).
        """
        height, width = grid

        def centres(count: int) -> torch.Tensor:
            return (torch.arange(count) + 0.5) / count if tiled else torch.linspace(0, 1, count)

        def coordinate(fraction: torch.Tensor, count: int) -> torch.Tensor:
            index = fraction * count - 0.5 if tiled else fraction * (count - 1)
            return 2 * index / max(count - 1, 1) - 1

        x = coordinate(self._across(centres(width)), width)
        y = coordinate(self._down(centres(height)), height)
        return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)

    def _across(self, fraction: torch.Tensor) -> torch.Tensor:
        """Map fractions of the view's width to fractions of the picture's."""
        return self.left + self.width * (1 - fraction if self.mirrored else fraction)

    def _down(self, fraction: torch.Tensor) -> torch.Tensor:
        return self.top + self.height * fraction


def _grey(picture: torch.Tensor) -> torch.Tensor:
    return (picture * torch.tensor(LUMA)[:, None, None]).sum(0, keepdim=True)


def _blend(base: torch.Tensor, picture: torch.Tensor, factor: float) -> torch.Tensor:
    return (base + factor * (picture - base)).clamp(0, 1)


def _turn_hue(picture: torch.Tensor, turn: float) -> torch.Tensor:
    """Turn the chroma plane of YIQ: brightness stays."""
    to_yiq = torch.tensor(_TO_YIQ)
    cosine, sine = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    rotation = torch.tensor([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])
    matrix = torch.linalg.inv(to_yiq) @ rotation @ to_yiq
    return torch.einsum("ij,jhw->ihw", matrix, picture).clamp(0, 1)


def _blurred(picture: torch.Tensor, sigma: float) -> torch.Tensor:
    taps = torch.arange(BLUR_TAPS, dtype=torch.float32) - BLUR_TAPS // 2
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    reach = BLUR_TAPS // 2
    padded = functional.pad(picture[None], (reach, reach, reach, reach), mode="reflect")
    rows = kernel.view(1, 1, 1, -1).expand(3, 1, 1, -1)
    columns = kernel.view(1, 1, -1, 1).expand(3, 1, -1, 1)
    blurred = functional.conv2d(functional.conv2d(padded, rows, groups=3), columns, groups=3)
    return blurred[0]
