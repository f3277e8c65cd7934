"""Colors from sRGB to CIELAB, where distances follow the eye, and back.

sRGB as in IEC 61966-2-1, white D65, CIELAB as in CIE 15: L in 0..100, a and b in about -128..127. Lab is
float32 [3, H, W], one plane a channel; images are uint8 [H, W, 3]. A round trip of 8-bit colours is exact.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from common.data.images import Bytes

_Floats = npt.NDArray[np.float32]

_RGB_TO_XYZ = (  # sRGB primaries under D65
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
# Where the cube root of CIELAB goes over into a straight line, so that black has a finite slope.
_KNEE = 6 / 29
# Entries of the table from linear light to 8 bits: at most 0.03 of a level between two of them.
_STEPS = 1 << 16


@lru_cache(maxsize=1)
def _tables() -> tuple[_Floats, Bytes]:
    """Return sRGB -> linear light [256], and linear light in 65535ths -> sRGB [65536]."""
    code = np.arange(256) / 255
    linear = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    light = np.arange(_STEPS) / (_STEPS - 1)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return linear.astype(np.float32), np.rint(255 * srgb).astype(np.uint8)


@lru_cache(maxsize=1)
def _matrices() -> tuple[_Floats, _Floats]:
    """Return linear RGB -> XYZ in units of the white, and its inverse; grey has X = Y = Z exactly."""
    to_xyz = np.array(_RGB_TO_XYZ)
    to_xyz /= to_xyz.sum(axis=1, keepdims=True)  # so that rounding leaves no tint in grey
    return to_xyz.astype(np.float32), np.linalg.inv(to_xyz).astype(np.float32)


def to_lab(image: Bytes) -> _Floats:
    """Return the CIELAB planes [3, H, W] of an sRGB image."""
    light = _tables()[0][image].reshape(-1, 3)
    xyz = _matrices()[0] @ light.T
    x, y, z = np.where(xyz > _KNEE**3, np.cbrt(xyz), xyz / np.float32(3 * _KNEE**2) + np.float32(4 / 29))
    lab: _Floats = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)]).reshape(3, *image.shape[:2])
    return lab


def from_lab(lab: _Floats) -> Bytes:
    """Return the sRGB image [H, W, 3] of CIELAB planes; colours that sRGB lacks are clipped in linear light."""
    lightness, a, b = lab.reshape(3, -1).astype(np.float32, copy=False)
    y = (lightness + 16) / 116
    roots = np.stack([y + a / 500, y, y - b / 200])
    xyz = np.where(roots > _KNEE, roots**3, np.float32(3 * _KNEE**2) * (roots - np.float32(4 / 29)))
    light = np.clip(_matrices()[1] @ xyz, 0, 1)  # before the curve: it has no value below 0
    codes = _tables()[1][np.rint(light * (_STEPS - 1)).astype(np.uint16)]
    return np.ascontiguousarray(codes.T).reshape(*lab.shape[1:], 3)
