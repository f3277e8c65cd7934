"""How do an image and its label map become a pair of one size?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from common.data.classes import ClassTable
from common.data.images import read_image, read_label
from common.data.views import cut
from common.errors import UserError

if TYPE_CHECKING:
    from common.data.manifest import Shard

Bytes = npt.NDArray[np.uint8]


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
