"""Reads an image with its label map as a pair of one size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from common.data.classes import ClassTable
from common.data.crops import Bytes, cut, view_box
from common.data.images import header_size, image_size, read_image, read_label
from common.data.manifest import Shard
from common.errors import UserError


def read_pair(
    image: str | Path, label: str | Path, table: ClassTable, repair: bool = False
) -> tuple[Bytes, Bytes]:
    """Return a picture uint8 [H, W, 3] and its train ids uint8 [H, W], 255 = ignore.

    Some pictures of GTA5 have another size than their label map. With ``repair`` such a picture is
    resized to its label map, by antialiased bilinear interpolation; the label map, whose numbers
    cannot be interpolated, stays as it is. Raises `UserError` as `read_image` and `read_label` do,
    and where the sizes differ without ``repair``.
    """
    pixels, ids = read_image(image), read_label(label, table)
    if pixels.shape[:2] == ids.shape:
        return pixels, ids
    height, width = ids.shape
    if not repair:
        raise UserError(
            f"The image {image} is {pixels.shape[1]} x {pixels.shape[0]} but its label map {label} is {width} x "
            f"{height} pixels; make both the same size."
        )
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.uint8), ids


def entry_pair(shard: Shard, index: int, table: ClassTable) -> tuple[Bytes, Bytes]:
    """Return what entry ``index`` of a shard shows, and its train ids; sizes as `read_pair` makes them.

    Raises `UserError` as `read_pair` does, and where the entry names no label.
    """
    label = shard.label_path(index)
    if label is None:
        raise UserError(
            f"The image {shard.image_path(index)} has no label in {shard.path}; expected one for every image, "
            "add it or leave the image out."
        )
    pixels, ids = read_pair(shard.image_path(index), label, table, shard.repair_sizes)
    view = shard.entries[index].view
    return cut(pixels, view), cut(ids, view)


def entry_image(shard: Shard, index: int) -> Bytes:
    """Return the picture that entry ``index`` shows, uint8 [H, W, 3]; raises `UserError` as `read_image`."""
    return cut(read_image(shard.image_path(index)), shard.entries[index].view)


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
