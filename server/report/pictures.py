"""Contact sheets of a round: image, prediction and truth side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from common.data.classes import ClassTable
from common.evaluation.overlay import (
    Bytes,
    Legend,
    legend_entries,
    make_legend,
    overlay,
    present_ids,
    truth_legend,
)
from common.figures import image_grid
from common.system.atomic import atomic_path

_CELL = 380  # pixels: three columns fill the width of a report
_ALPHA = 0.74  # strong: images this small show their classes, not their texture


def contact_sheet(
    images: Sequence[Bytes],
    predictions: Sequence[Bytes],
    truths: Sequence[Bytes | None] | None,
    classes: ClassTable | None,
    mapping: Sequence[int] | None,
    *,
    num_clusters: int | None = None,
) -> Bytes:
    """Draw one row an image: image | prediction | truth, with the names of all colors below, as uint8 [H, W, 3].

    Args:
        images: RGB, uint8 [H, W, 3], of any size.
        predictions: cluster of every pixel, uint8 [H', W'].
        truths: true class of every pixel (255: not labelled), or None: two columns, image | clusters.
        classes: names and colors.
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
    rows = [[image, _painted(image, ids, legend)] for image, ids in zip(images, maps, strict=True)]
    used = set(present_ids(maps, legend))
    if classes is not None and shown:
        of_truth = truth_legend(classes)
        used |= set(present_ids(shown, of_truth))
        for row, truth in zip(rows, truths or (), strict=True):
            row += [] if truth is None else [_painted(row[0], truth, of_truth)]
    return image_grid(rows, heads, _CELL, legend=legend_entries(legend, sorted(used)))


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
        Image.fromarray(sheet).save(temporary, format="PNG", compress_level=4)
    return path


def _painted(image: Bytes, ids: Bytes, legend: Legend) -> Bytes:
    """Lay a map over its image, which is brought to the map's size."""
    if image.shape[:2] != ids.shape:
        size = (ids.shape[1], ids.shape[0])
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return overlay(image, ids, legend, alpha=_ALPHA)
