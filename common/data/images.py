"""Reads images and label maps off the disk, whatever form they have, and what of them an entry of a shard shows.

Everything that looks at the pixels of a shard comes through the last functions here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from common.data import volumes
from common.data.classes import ClassTable
from common.data.formats import (
    AS_FOUND,
    EXTRA_SUFFIXES,
    Reading,
    opened_image,
    split_frame,
    suffix_of,
    to_rgb,
)
from common.data.formats import Bytes as Bytes
from common.data.manifest import Shard, view_place
from common.errors import UserError


def read_image(path: str | Path, reading: Reading = AS_FOUND) -> Bytes:
    """Return a picture as uint8 [H, W, 3], turned upright as its EXIF orientation says; writable.

    Gray is repeated, palettes are resolved, and transparency is laid over white. Values of more than 8 bits are
    scaled as ``reading`` says. Of several frames in one file the first is taken.
    Raises `UserError` that names the file where it cannot be read, or the package that would read it.
    """
    source, frame = split_frame(path)
    if suffix_of(source) in EXTRA_SUFFIXES:
        return volumes.decode(source, frame, reading)
    deep = volumes.deep_values(source)
    if deep is not None:
        return to_rgb(deep, reading, source)
    with opened_image(source) as opened:
        picture: Image.Image = opened
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)  # each copy of a large image takes 250 MB
        if picture.mode == "F" or picture.mode.startswith("I"):
            return to_rgb(np.asarray(picture), reading, source)
        if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
            layer = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
        if reading.channels is not None and len(picture.getbands()) > 1:
            return to_rgb(np.asarray(picture.convert("RGB")), reading, source)
        return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"), dtype=np.uint8)


def header_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) as they stand in a file's header, whichever way up the image is.

    Raises `UserError` as `read_image` does.
    """
    source, _ = split_frame(path)
    if volumes.reads(source):
        return volumes.size_of(source)
    with opened_image(source) as opened:
        return opened.height, opened.width


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) as `read_image` would give them.

    From the header alone, but of a PNG, whose orientation may stand behind its pixels, from all of the file.
    """
    source, _ = split_frame(path)
    if volumes.reads(source):
        return volumes.size_of(source)
    with opened_image(source) as opened:
        width, height = opened.size
        # these orientations of EXIF lie on a side
        turned = opened.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def read_raw_label(path: str | Path) -> Bytes:
    """Return the values of a label map as they stand in the file, uint8 [H, W].

    A palette picture gives its indices. Raises `UserError` where the file is unreadable, has
    several channels, or holds values above 255.
    """
    with opened_image(path, "label map") as opened:
        opened.load()
        mode = opened.mode
        values = np.array(opened.convert("L") if mode == "1" else opened)
        if mode == "1":
            values = (values > 0).astype(np.uint8)
        elif mode == "RGB" and (values == values[..., :1]).all():
            values = values[..., 0]  # numbers, written three times
    if values.ndim != 2 or values.dtype.kind == "f":
        raise UserError(
            f"The label map {path} is a {mode} picture; expected one channel whose values are class "
            "numbers, so convert colours to numbers first."
        )
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 255:
        raise UserError(
            f"The label map {path} holds the value {int(values.max())}; expected 0 to 255, remap it first."
        )
    return values.astype(np.uint8)


def read_label(path: str | Path, table: ClassTable) -> Bytes:
    """Return a label map as train ids, uint8 [H, W], 255 = ignore. The only door to labels.

    Raises `UserError` naming the file and the value where a value is not in ``table``.
    """
    raw = read_raw_label(path)
    # counting is several times as fast as sorting for unique values
    present = np.bincount(raw.ravel(), minlength=256) > 0
    strange = np.flatnonzero(present & ~table.known())
    if strange.size:
        raise UserError(
            f"The label map {path} holds the value {int(strange[0])}, which class table {table.name!r} "
            f"({table.num_classes} classes) does not know; correct the file or choose another table."
        )
    return table.lut()[raw]


def view_box(view: str | None, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the part of a photo that a view shows, in pixels: left, top, right, bottom; None: all of it."""
    if view is None:
        return 0, 0, width, height
    down, across = view_place(view)
    high, wide = max(1, height // 2), max(1, width // 2)
    top, left = round(down * (height - high)), round(across * (width - wide))
    return left, top, left + wide, top + high


def cut(pixels: Bytes, view: str | None) -> Bytes:
    """Return what a view shows of a photo or a label map [H, W, ...]."""
    if view is None:
        return pixels
    left, top, right, bottom = view_box(view, *pixels.shape[:2])
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def without_labels(shard: Shard) -> Shard:
    """Return the same images without a label path, so that nothing after it can open one."""
    return replace(shard, entries=tuple(replace(entry, label=None) for entry in shard.entries))


def entry_pair(shard: Shard, index: int, table: ClassTable) -> tuple[Bytes, Bytes]:
    """Return what entry ``index`` of a shard shows, uint8 [H, W, 3], and its train ids uint8 [H, W], 255 = ignore.

    Some images of GTA5 have another size than their label map. Where the shard repairs sizes, such an image is
    resized to its label map, by antialiased bilinear interpolation; the label map, whose numbers cannot be
    interpolated, stays as it is. Raises `UserError` as `read_image` and `read_label` do, where the entry names no
    label, and where the sizes differ in another shard.
    """
    image, label = shard.image_path(index), shard.label_path(index)
    if label is None:
        raise UserError(
            f"The image {image} has no label in {shard.path}; expected one for every image, add it or leave the "
            "image out."
        )
    pixels, ids = read_image(image, shard.reading), read_label(label, table)
    if pixels.shape[:2] != ids.shape:
        height, width = ids.shape
        if not shard.repair_sizes:
            raise UserError(
                f"The image {image} is {pixels.shape[1]} x {pixels.shape[0]} but its label map {label} is {width} x "
                f"{height} pixels; make both the same size."
            )
        pixels = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    view = shard.entries[index].view
    return cut(pixels, view), cut(ids, view)


def entry_image(shard: Shard, index: int) -> Bytes:
    """Return the picture that entry ``index`` shows, uint8 [H, W, 3]; raises `UserError` as `read_image`."""
    return cut(read_image(shard.image_path(index), shard.reading), shard.entries[index].view)


def entry_size(shard: Shard, index: int) -> tuple[int, int]:
    """Return (height, width) of `entry_image` as `image_size` finds it."""
    height, width = image_size(shard.image_path(index))
    left, top, right, bottom = view_box(shard.entries[index].view, height, width)
    return bottom - top, right - left


def trained_size(shard: Shard, index: int) -> tuple[int, int]:
    """Return (height, width) of what a step with labels sees of an entry: where the shard repairs sizes, the label's.

    Without a label it is `entry_size`, and no label file is looked at.
    """
    label = shard.label_path(index)
    if label is None or not shard.repair_sizes:
        return entry_size(shard, index)
    left, top, right, bottom = view_box(shard.entries[index].view, *header_size(label))
    return bottom - top, right - left


def entry_label(shard: Shard, index: int, table: ClassTable) -> Bytes | None:
    """Return the train ids of what entry ``index`` shows, uint8 [H, W]; None where no label is named.

    Raises `UserError` as `read_label` does, which is the only door to labels.
    """
    path = shard.label_path(index)
    return None if path is None else cut(read_label(path, table), shard.entries[index].view)


def images_key(shard: Shard) -> str:
    """Return a sha256 (hex) of a shard's images by path below the root, view, size and modification time, in order.

    So a data root may be mounted elsewhere. Raises `UserError` where an image is missing.
    """
    images = hashlib.sha256()
    if shard.reading != AS_FOUND:
        images.update(json.dumps(shard.reading.as_settings()).encode())
    for index, entry in enumerate(shard.entries):
        try:
            state = split_frame(shard.image_path(index))[0].stat()
        except OSError as error:
            raise UserError(
                f"Image {shard.image_path(index)} of shard {shard.name} cannot be found "
                f"({error.strerror or error}); correct the manifest or the data root."
            ) from None
        shown = [entry.image] if entry.view is None else [entry.image, entry.view]
        images.update(json.dumps([*shown, state.st_size, state.st_mtime_ns]).encode())
    return images.hexdigest()
