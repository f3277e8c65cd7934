"""Reads images and label maps off the disk, whatever form they have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from common.data.classes import ClassTable
from common.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
_ORIENTATION = 0x0112
_READ_ERRORS = (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def _unreadable(path: Path, kind: str, error: Exception) -> UserError:
    if not path.exists():
        return UserError(f"The {kind} {path} does not exist; correct the manifest or the data root.")
    if isinstance(error, PermissionError):
        return UserError(f"The {kind} {path} may not be read (permission denied); change its permissions.")
    if isinstance(error, UnidentifiedImageError):
        return UserError(f"{path} is no picture that can be read; expected JPEG, PNG, BMP, TIFF or WebP.")
    return UserError(f"The {kind} {path} is damaged or truncated ({error}); replace it or remove it.")


def read_image(path: str | Path) -> npt.NDArray[np.uint8]:
    """Return a picture as uint8 [H, W, 3], turned upright as its EXIF orientation says.

    Grey is repeated, palettes are resolved, transparency is laid over white, and 16 bits per
    channel are scaled by 255/65535: a fixed factor, so that sites agree on what a value means.
    Raises `UserError` naming the file where it cannot be read.
    """
    source = Path(path)
    try:
        with Image.open(source) as opened:
            opened.load()
            picture = ImageOps.exif_transpose(opened)
            if picture.mode == "F":
                raise UserError(
                    f"The image {source} holds floating-point values, whose range is unknown; "
                    "convert it to 8 or 16 bits."
                )
            if picture.mode.startswith("I"):
                wide = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
                grey = ((wide * 255 + 32767) // 65535).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
                layer = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
            return np.array(picture.convert("RGB"), dtype=np.uint8)
    except UserError:
        raise
    except _READ_ERRORS as error:
        raise _unreadable(source, "image", error) from None


def header_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) as they stand in a file's header, whichever way up the image is.

    Raises `UserError` as `read_image` does.
    """
    source = Path(path)
    try:
        with Image.open(source) as opened:
            width, height = opened.size
    except _READ_ERRORS as error:
        raise _unreadable(source, "image", error) from None
    return height, width


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) as `read_image` would give them.

    From the header alone, but of a PNG, whose orientation may stand behind its pixels, from all of the file.
    """
    source = Path(path)
    try:
        with Image.open(source) as opened:
            width, height = opened.size
            turned = opened.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except _READ_ERRORS as error:
        raise _unreadable(source, "image", error) from None
    return (width, height) if turned else (height, width)


def read_raw_label(path: str | Path) -> npt.NDArray[np.uint8]:
    """Return the values of a label map as they stand in the file, uint8 [H, W].

    A palette picture gives its indices. Raises `UserError` where the file is unreadable, has
    several channels, or holds values above 255.
    """
    source = Path(path)
    try:
        with Image.open(source) as opened:
            opened.load()
            mode = opened.mode
            values = np.array(opened.convert("L") if mode == "1" else opened)
            if mode == "1":
                values = (values > 0).astype(np.uint8)
    except _READ_ERRORS as error:
        raise _unreadable(source, "label map", error) from None
    if values.ndim != 2 or values.dtype.kind == "f":
        raise UserError(
            f"The label map {source} is a {mode} picture; expected one channel whose values are class "
            "numbers, so convert colours to numbers first."
        )
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 255:
        raise UserError(
            f"The label map {source} holds the value {int(values.max())}; expected 0 to 255, remap it first."
        )
    return values.astype(np.uint8)


def read_label(path: str | Path, table: ClassTable) -> npt.NDArray[np.uint8]:
    """Return a label map as train ids, uint8 [H, W], 255 = ignore. The only door to labels.

    Raises `UserError` naming the file and the value where a value is not in ``table``.
    """
    raw = read_raw_label(path)
    present = np.bincount(raw.ravel(), minlength=256) > 0
    strange = np.flatnonzero(present & ~table.known())
    if strange.size:
        raise UserError(
            f"The label map {path} holds the value {int(strange[0])}, which class table {table.name!r} "
            f"({table.num_classes} classes) does not know; correct the file or choose another table."
        )
    return table.lut()[raw]
