"""Reads what Pillow does not: 16-bit color, more than three channels, HEIC, DICOM, slices of NIfTI.

Each format needs a package of the extra ``formats``. Where it is missing, one sentence names it.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from common.data.formats import (
    EXTRA_SUFFIXES,
    Bytes,
    Reading,
    Values,
    check_pixels,
    opened_image,
    own_range,
    shown,
    suffix_of,
    to_rgb,
    unreadable,
)
from common.errors import UserError

_MODULES = {"pillow-heif": "pillow_heif"}
_PNG_COLOR_TYPE, _PNG_BITS = 25, 24  # places in the file
_BITS_PER_SAMPLE, _SAMPLES = 258, 277  # tags of TIFF


def _package(name: str, path: Path) -> Any:
    """Import the package that reads ``path``; raises `UserError` that names it where it is missing."""
    try:
        return importlib.import_module(_MODULES.get(name, name))
    except ImportError:
        raise UserError(
            f"{shown(path)} needs the package {name}, which is not installed; pip install {name}, or the extra "
            "'formats' with all of them."
        ) from None


def _named(read: Callable[..., Any], path: Path, *more: Any) -> Any:
    """Call a reader of a foreign package; whatever it raises becomes a `UserError` that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file's metadata, which nobody here uses
            return read(path, *more)
    except UserError:
        raise
    except Exception as error:  # these packages raise nearly anything for a damaged file
        raise unreadable(path, "image", error) from None


def decode(path: Path, frame: int | None, reading: Reading) -> Bytes:
    """Return a HEIC, DICOM or NIfTI image, uint8 [H, W, 3]; ``frame`` is a slice, by default the middle one."""
    package = EXTRA_SUFFIXES[suffix_of(path)]
    module = _package(package, path)
    read = {"pillow-heif": _heif, "pydicom": _dicom, "nibabel": _nifti}[package]
    values: Bytes = _named(read, path, module, frame, reading)
    return values


def reads(path: Path) -> bool:
    """Whether a file is this module's to read, not Pillow's."""
    return suffix_of(path) in EXTRA_SUFFIXES or needs_raster(path)


def size_of(path: Path) -> tuple[int, int]:
    """Return (height, width) of a file of this module's formats."""
    package = EXTRA_SUFFIXES.get(suffix_of(path), "rasterio")
    module = _package(package, path)
    read = {
        "pillow-heif": _heif_size,
        "pydicom": _dicom_size,
        "nibabel": _nifti_size,
        "rasterio": _raster_size,
    }
    size: tuple[int, int] = _named(read[package], path, module)
    return size


def frames(path: Path) -> list[int] | None:
    """Return which slices of a NIfTI volume show anything; None for files of one image.

    Slices of one value lie outside what was scanned.
    """
    if suffix_of(path) not in (".nii", ".nii.gz"):
        return None
    module = _package("nibabel", path)

    def read(source: Path, nibabel: Any) -> list[int]:
        volume = _volume(str(source), source.stat().st_mtime_ns, nibabel)[0]
        return [k for k in range(volume.shape[2]) if volume[:, :, k].min() < volume[:, :, k].max()]

    shown_slices: list[int] = _named(read, path, module)
    return shown_slices


def _heif(path: Path, module: Any, _: int | None, reading: Reading) -> Bytes:
    size = module.open_heif(path).size
    check_pixels(path, *size)
    picture = ImageOps.exif_transpose(module.open_heif(path).to_pillow())
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture)
    return to_rgb(np.asarray(picture.convert("RGB")), reading, path)


def _heif_size(path: Path, module: Any) -> tuple[int, int]:
    width, height = module.open_heif(path).size
    return height, width


def _dicom(path: Path, module: Any, frame: int | None, reading: Reading) -> Bytes:
    pixels = importlib.import_module("pydicom.pixels")
    data = module.dcmread(path)
    check_pixels(path, int(data.Columns), int(data.Rows))
    values = data.pixel_array
    color = data.get("SamplesPerPixel", 1) > 1
    if int(data.get("NumberOfFrames", 1) or 1) > 1:
        values = values[len(values) // 2 if frame is None else frame]
    if color:
        return to_rgb(values, reading, path)
    values = pixels.apply_modality_lut(values, data)
    if reading.window is None and "WindowCenter" in data:  # what its makers chose for a reader's eyes
        values = pixels.apply_voi_lut(values, data)
    made = to_rgb(np.asarray(values, np.float32), reading, path)
    # in this kind the lowest value is white
    return 255 - made if data.get("PhotometricInterpretation") == "MONOCHROME1" else made


def _dicom_size(path: Path, module: Any) -> tuple[int, int]:
    data = module.dcmread(path, stop_before_pixels=True)
    return int(data.Rows), int(data.Columns)


@functools.lru_cache(1)  # its slices come one after the other
def _volume(path: str, _: int, nibabel: Any) -> tuple[Values, tuple[float, float]]:
    """Return the first volume of a file as [W, H, slices], patient upright, and the range of its values."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    if len(image.shape) < 2:
        raise ValueError(f"it has {len(image.shape)} axes")
    check_pixels(Path(path), int(np.prod(image.shape[:3])), 1)
    values = np.asarray(image.dataobj[..., 0] if len(image.shape) > 3 else image.dataobj)
    values = values.reshape(*values.shape[:2], -1).astype(np.float32)
    return values, own_range(values)


def _nifti(path: Path, module: Any, frame: int | None, reading: Reading) -> Bytes:
    values, whole = _volume(str(path), path.stat().st_mtime_ns, module)
    if frame is not None and frame >= values.shape[2]:
        raise UserError(f"{shown(path)} has {values.shape[2]} slices, but slice {frame} was asked for.")
    middle = values[:, :, values.shape[2] // 2 if frame is None else frame]
    # one range for all slices: nearly empty ones would show noise
    return to_rgb(np.rot90(middle), Reading(reading.window or whole), path)


def _nifti_size(path: Path, module: Any) -> tuple[int, int]:
    image = module.as_closest_canonical(module.load(path))
    return int(image.shape[1]), int(image.shape[0])


def deep_values(path: Path) -> Values | None:
    """Return [H, W, C] of a PNG or TIFF that Pillow would cut to 8 bits or cannot hold; None: it can.

    Raises `UserError` where that takes rasterio, which is missing.
    """
    if suffix_of(path) == ".png" and _deep_png(path):
        return _png_values(path)
    if needs_raster(path):
        values: Values = _named(_raster, path, _package("rasterio", path))
        return values
    return None


def _deep_png(path: Path) -> bool:
    """Whether a PNG has colors of 16 bits, of which Pillow keeps the upper eight."""
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError:
        return False  # Pillow says it better
    return head[:4] == b"\x89PNG" and len(head) == 26 and head[_PNG_BITS] == 16 and head[_PNG_COLOR_TYPE] != 0


def _png_values(path: Path) -> Values:
    with opened_image(path) as opened:
        opened.load()  # bounds, truncation and damage, in the same words as for other files
    import torch  # slow to load, and few images need it
    from torchvision.io import ImageReadMode, decode_image

    values = decode_image(
        torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8), ImageReadMode.UNCHANGED
    )
    channels = np.asarray(values.permute(1, 2, 0).numpy(), np.uint16)
    if channels.shape[2] not in (2, 4):
        return channels
    # transparency over white, as for other images
    opaque = channels[:, :, -1:].astype(np.float32) / 65535
    white = float(channels[:, :, :-1].max())
    return np.asarray(channels[:, :, :-1] * opaque + white * (1 - opaque)).astype(np.uint16)


def needs_raster(path: Path) -> bool:
    """Whether a TIFF has more than three channels, or colors of more than 8 bits."""
    if suffix_of(path) not in (".tif", ".tiff"):
        return False
    try:
        with Image.open(path, formats=("TIFF",)) as opened:
            bits = opened.tag_v2.get(_BITS_PER_SAMPLE, (1,))  # type: ignore[attr-defined]
            return opened.mode in ("RGB", "RGBA", "RGBX", "CMYK") and max(bits) > 8
    except (OSError, ValueError, SyntaxError):
        return _is_odd_tiff(path)


def _is_odd_tiff(path: Path) -> bool:
    """Whether a file is a TIFF with values, but none of Pillow's kinds."""
    try:
        from PIL.TiffImagePlugin import ImageFileDirectory_v2

        with path.open("rb") as file:
            tags: Any = ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
    except Exception:  # no TIFF at all, or damaged: Pillow says so
        return False
    return 256 in tags and 257 in tags


def _raster(path: Path, module: Any) -> Values:
    """Return a TIFF's channels [H, W, C]; a channel of transparency is laid over white."""
    with module.open(path) as source:
        check_pixels(path, source.width * max(1, source.count // 3), source.height)
        values: Values = np.moveaxis(source.read(), 0, -1)
        kinds = [kind.name for kind in source.colorinterp]
        nodata = source.nodata
    if nodata is not None and values.dtype.kind == "f":
        values = np.where(values == nodata, np.float32(np.nan), values)
    keep = [index for index, kind in enumerate(kinds) if kind != "alpha"]
    return values[:, :, keep] if keep else values


def _raster_size(path: Path, module: Any) -> tuple[int, int]:
    with module.open(path) as source:
        return int(source.height), int(source.width)


def write_georeferenced(
    source: Path, ids: Bytes, colors: Sequence[tuple[int, int, int]], target: Path
) -> bool:
    """Write ids uint8 [H, W] as a GeoTIFF that lies where ``source`` lies, 255 as no data, and say whether it was.

    Not so where the source has no place on Earth, or rasterio is missing.
    """
    if suffix_of(source) not in (".tif", ".tiff"):
        return False
    try:
        rasterio = importlib.import_module("rasterio")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has no place on Earth
            with rasterio.open(source) as opened:
                place = {"crs": opened.crs, "transform": opened.transform}
                shape = (opened.height, opened.width)
    except Exception:  # missing, or a TIFF that only Pillow reads
        return False
    if place["crs"] is None or shape != ids.shape:
        return False
    form = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 255, "compress": "deflate"}
    with rasterio.open(target, "w", height=shape[0], width=shape[1], **form, **place) as made:
        made.write(ids, 1)
        made.write_colormap(1, {index: (*color, 255) for index, color in enumerate(colors)})
    return True


def channel_count(path: Path) -> int:
    """Return how many channels a TIFF has that Pillow cannot hold; 3 for all other files."""
    if not needs_raster(path):
        return 3
    module = _package("rasterio", path)

    def read(source: Path, rasterio: Any) -> int:
        with rasterio.open(source) as opened:
            return int(opened.count)

    count: int = _named(read, path, module)
    return count
