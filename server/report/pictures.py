"""How are images, predictions and truth laid side by side?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from common.data.classes import ClassTable
from common.evaluation.overlay import (
    Legend,
    font,
    legend_strip,
    make_legend,
    overlay,
    present_ids,
    truth_legend,
)
from common.system.atomic import atomic_path

Bytes = npt.NDArray[np.uint8]

_CELL = 380
_GAP = 12
_ALPHA = 0.74


def contact_sheet(
    images: Sequence[Bytes],
    predictions: Sequence[Bytes],
    truths: Sequence[Bytes | None] | None,
    classes: ClassTable | None,
    mapping: Sequence[int] | None,
    *,
    num_clusters: int | None = None,
) -> Image.Image:
    """Draw one row an image: image | prediction | truth, with the names of all colours below.

    Args:
        images: RGB, uint8 [H, W, 3], of any size.
        predictions: cluster of every pixel, uint8 [H', W'].
        truths: true class of every pixel (255: not labelled), or None: two columns, image | clusters.
        classes: names and colours.
        mapping: class of each cluster, -1 for none; without it clusters keep their numbers.
        num_clusters: K; by default as many as the mapping names or the predictions show.
    """
    if not images or len(images) != len(predictions):
        raise ValueError(
            f"{len(images)} images and {len(predictions)} predictions; expected as many, at least one."
        )
    if num_clusters is None:
        num_clusters = len(mapping) if mapping is not None else 1 + max(int(np.amax(p)) for p in predictions)
    legend = make_legend(num_clusters, classes, mapping)
    maps = [legend.apply(prediction) for prediction in predictions]
    shown = [truth for truth in truths or () if truth is not None]
    heads = ["image", "prediction" if mapping is not None else "clusters"] + (["truth"] if shown else [])
    rows: list[list[Image.Image]] = []
    for index, (image, ids) in enumerate(zip(images, maps, strict=True)):
        row = [_cell(image), _cell(_painted(image, ids, legend))]
        truth = truths[index] if truths is not None else None
        if truth is not None and classes is not None:
            row.append(_cell(_painted(image, truth, truth_legend(classes))))
        rows.append(row)
    return _lay_out(heads, rows, _strips(legend, maps, shown, classes, _width(len(heads))))


def write_pictures(
    run_dir: Path,
    round_number: int,
    images: Sequence[Bytes],
    predictions: Sequence[Bytes],
    truths: Sequence[Bytes | None] | None,
    classes: ClassTable | None,
    mapping: Sequence[int] | None,
    *,
    num_clusters: int | None = None,
) -> Path:
    """Write the `contact_sheet` of a round to ``pictures/round-0003.png`` of a run and return the path."""
    sheet = contact_sheet(images, predictions, truths, classes, mapping, num_clusters=num_clusters)
    path = run_dir / "pictures" / f"round-{round_number:04d}.png"
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG", compress_level=4)
    return path


def _width(columns: int) -> int:
    return columns * _CELL + (columns + 1) * _GAP


def _painted(image: Bytes, ids: Bytes, legend: Legend) -> Bytes:
    """Lay a map over its image, which is brought to the map's size."""
    if image.shape[:2] != ids.shape:
        size = (ids.shape[1], ids.shape[0])
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return overlay(image, ids, legend, alpha=_ALPHA)


def _cell(picture: Bytes) -> Image.Image:
    """Bring a picture to the width of a column."""
    height = max(1, round(picture.shape[0] * _CELL / picture.shape[1]))
    return Image.fromarray(picture).resize((_CELL, height), Image.Resampling.LANCZOS)


def _strips(
    legend: Legend, maps: Sequence[Bytes], truths: Sequence[Bytes], classes: ClassTable | None, width: int
) -> list[Image.Image]:
    """Return the legend of what occurs in predictions or truths: classes in their order, then clusters."""
    used = set(present_ids(maps, legend))
    if classes is not None and truths:
        used |= set(present_ids(list(truths), truth_legend(classes)))
    return [legend_strip(legend, sorted(used), width, size=14)]


def _lay_out(
    heads: Sequence[str], rows: Sequence[Sequence[Image.Image]], strips: Sequence[Image.Image]
) -> Image.Image:
    top = 34
    heights = [max(cell.height for cell in row) for row in rows]
    width = _width(len(heads))
    height = top + sum(heights) + _GAP * len(rows) + sum(strip.height for strip in strips) + _GAP // 2
    sheet = Image.new("RGB", (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        draw.text((_GAP + column * (_CELL + _GAP), 9), head, (75, 85, 99), font(16))
    y = top
    for row, row_height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (_GAP + column * (_CELL + _GAP), y))
        y += row_height + _GAP
    for strip in strips:
        sheet.paste(strip, (0, y - _GAP // 2))
        y += strip.height
    return sheet
