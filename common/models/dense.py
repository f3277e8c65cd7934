"""Finer strides, overlapping windows and several scales of one feature extractor.

All three are passes of the same network over shifted, cut or resized copies of an image: they ask nothing of
an architecture, and with the default settings there is one pass over the image as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from common.errors import UserError
from common.settings.unsupervised import Model

# A network: normalised [B, 3, H, W] to features [B, C, h, w], for any H and W that fit its stride
Extract = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Dense:
    """How a network is passed over an image.

    Attributes:
        own: the network's own stride in pixels.
        corner: its first feature is centered on pixel 0 (sides of own n + 1); else its features tile the input.
        stride: the stride wanted, a divisor of ``own``.
        window: side of the windows in pixels; 0: the whole image.
        scales: sizes of the input relative to the image.
    """

    own: int
    corner: bool
    stride: int
    window: int = 0
    scales: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, model: Model, own: int, corner: bool = False) -> Dense:
        """Read the settings of a network with stride ``own``; `UserError` where they do not fit it."""
        stride = model.stride or own
        if own % stride:
            divisors = ", ".join(str(n) for n in range(1, own + 1) if own % n == 0)
            raise UserError(
                f"model.stride is {model.stride}, which does not divide the {own} pixels of {model.backbone}; "
                f"set it to one of {divisors}, or 0."
            )
        if model.window and model.window < 2 * own:
            raise UserError(
                f"model.window is {model.window}, less than two strides of {model.backbone}; "
                f"set it to {2 * own} or more, or to 0 for the whole image."
            )
        scales = tuple(float(scale) for scale in model.scales.split(","))
        dense = cls(own, corner, stride, model.window, scales)
        if not dense.plain and corner and (model.height % own != 1 or model.width % own != 1):
            raise UserError(
                f"model.stride, model.window and model.scales need sides of {own} n + 1 pixels with "
                f"{model.backbone}; set model.height and model.width to such, not {model.height} x {model.width}."
            )
        return dense

    @property
    def plain(self) -> bool:
        """Whether one pass over the image as it is does it."""
        return self.stride == self.own and not self.window and self.scales == (1.0,)

    def features(self, extract: Extract, x: torch.Tensor) -> torch.Tensor:
        """Map normalised [B, 3, H, W] to features [B, C, H / stride, W / stride], the mean over the scales."""
        if self.plain:
            return extract(x)
        total: torch.Tensor | None = None
        height, width = x.shape[2:]
        grid = [side // self.stride + self.corner for side in (height, width)]
        for scale in self.scales:
            found = self._strided(extract, x if scale == 1 else self._scaled(x, scale))
            if list(found.shape[2:]) != grid:
                found = F.interpolate(found, grid, mode="bilinear", align_corners=self.corner)
            total = found if total is None else total + found
        assert total is not None
        return total / len(self.scales)

    def _scaled(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        size = [max(round(side * scale / self.own), 2) * self.own + self.corner for side in x.shape[2:]]
        return F.interpolate(x, size, mode="bilinear", align_corners=self.corner, antialias=True)

    def _strided(self, extract: Extract, x: torch.Tensor) -> torch.Tensor:
        """Interleave the features of shifted images: exact à trous, without a change inside the network."""
        times = self.own // self.stride
        if times == 1:
            return self._windowed(extract, x)
        height, width = x.shape[2:]
        # so that the interleaved features are centered in cells of the new stride, to half a pixel
        first = self.own - (0 if self.corner else (self.own - self.stride) // 2)
        padded = F.pad(x, [self.own] * 4, mode="replicate")
        rows = []
        for down in range(times):
            row = []
            for right in range(times):
                top, left = first + down * self.stride, first + right * self.stride
                row.append(self._windowed(extract, padded[:, :, top : top + height, left : left + width]))
            rows.append(torch.stack(row, dim=-1).flatten(-2))
        found = torch.stack(rows, dim=-2).flatten(-3, -2)
        if self.corner:  # beyond the last pixel lies only padding
            found = found[:, :, : height // self.stride + 1, : width // self.stride + 1]
        return found

    def _windowed(self, extract: Extract, x: torch.Tensor) -> torch.Tensor:
        """Average the features of windows that overlap by half, the last ones flush with the border."""
        height, width = x.shape[2:]
        if not self.window or self.window >= max(height, width):
            return extract(x)
        tops, tall = self._windows(height)
        lefts, wide = self._windows(width)
        total: torch.Tensor | None = None
        for top in tops:
            for left in lefts:
                found = extract(x[:, :, top : top + tall, left : left + wide])
                if total is None:
                    shape = (
                        *found.shape[:2],
                        height // self.own + self.corner,
                        width // self.own + self.corner,
                    )
                    total, times = found.new_zeros(shape), found.new_zeros(shape[2:])
                rows = slice(top // self.own, top // self.own + found.shape[2])
                columns = slice(left // self.own, left // self.own + found.shape[3])
                total[:, :, rows, columns] += found
                times[rows, columns] += 1
        assert total is not None
        return total / times

    def _windows(self, side: int) -> tuple[list[int], int]:
        """Return the first pixels of the windows along one side, and their length."""
        cells = min(self.window, side) // self.own
        last = side // self.own - cells
        starts = sorted({*range(0, last, max(cells // 2, 1)), last})
        return [start * self.own for start in starts], cells * self.own + self.corner
