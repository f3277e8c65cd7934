"""Checks of a shard's files: images that cannot be read, labels that do not fit, images that make no batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from common.data.classes import IGNORE, ClassTable
from common.data.images import (
    entry_pair,
    entry_size,
    header_size,
    read_image,
    read_label,
    trained_size,
    without_labels,
)
from common.data.manifest import Shard
from common.errors import UserError
from common.settings.network import Transforms
from common.settings.objectives import OBJECTIVES
from common.settings.schema import RunConfig
from common.system.cli import Progress, progress_line

T = TypeVar("T")


def inspect_entry(
    shard: Shard, index: int, labels: bool, table: ClassTable | None
) -> npt.NDArray[np.int64] | None:
    """Decode one image, and its label map if ``labels``; return labelled pixels per class, int64 [C].

    Raises `UserError` where a file is unreadable, a label value is unknown to ``table``, a label is
    missing, or label and image differ in size and the shard does not repair that. Returns None without ``labels``.
    """
    if not labels:
        read_image(shard.image_path(index), shard.reading)
        return None
    table = required_table(shard, table)
    _, seen = entry_pair(shard, index, table)
    return np.bincount(seen.ravel(), minlength=256)[: table.num_classes].astype(np.int64)


def required_table(shard: Shard, table: ClassTable | None) -> ClassTable:
    """Return the class table by which labels are read; `UserError` where there is none."""
    if table is None:
        raise UserError(
            f"The labels of {shard.path} have no class table; name one (--classes NAME or a JSON file)."
        )
    return table


def inspect_shard(
    shard: Shard, labels: bool, indices: Sequence[int] | None = None, progress: Progress | None = None
) -> list[npt.NDArray[np.int64] | UserError | None]:
    """Return what `inspect_entry` returned or raised, for each image in order."""
    chosen = range(len(shard)) if indices is None else indices

    def one(index: int) -> npt.NDArray[np.int64] | UserError | None:
        try:
            return inspect_entry(shard, index, labels, shard.classes)
        except UserError as error:
            return error

    return _in_threads(one, chosen, progress)


def _in_threads(look: Callable[[int], T], indices: Sequence[int], progress: Progress | None) -> list[T]:
    """Return what ``look`` returns for each image, in order; a few threads decode, as pixels need no lock."""
    results = []
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for result in pool.map(look, indices):
            results.append(result)
            if progress is not None:
                progress(len(results), len(indices))
    return results


def check_shard(shard: Shard, labels: bool, progress: Progress | None = None) -> list[str]:
    """Return one sentence for every image of ``shard`` that cannot be used; empty if all can.

    Every image is decoded completely. Label files are opened only with ``labels``, which also asks
    for a label per image, of the image's size and with values that the class table knows, and for one
    labelled pixel in all of them.
    """
    found = inspect_shard(shard, labels, None, progress)
    faults = [str(result) for result in found if isinstance(result, UserError)]
    counts = [result for result in found if isinstance(result, np.ndarray)]
    if counts and not faults and not any(result.any() for result in counts):
        faults.append(all_ignored(shard))
    return faults


def check_label_files(shard: Shard, progress: Progress | None = None, sizes: bool = False) -> None:
    """Read every label that there is, and no image; `UserError` for the first that is wrong.

    With ``sizes`` headers of images are read too: each has to be of its label map's size, where the shard does not
    repair that.
    """
    labelled = [index for index, entry in enumerate(shard.entries) if entry.label is not None]
    if not labelled:
        return
    table = shard.classes
    if table is None:
        raise UserError(
            f"{shard.path} names labels but no class table is known; set eval.classes to a name or a JSON file."
        )

    def pixels(index: int) -> int:
        path = shard.label_path(index)
        assert path is not None, "it is labelled"
        ids = read_label(path, table)
        if sizes and not shard.repair_sizes and header_size(shard.image_path(index)) != ids.shape:
            entry_pair(shard, index, table)  # says what is wrong, if the image does not just lie on its side
        return int((ids != IGNORE).sum())

    if not sum(_in_threads(pixels, labelled, progress)):
        raise UserError(all_ignored(shard))


def all_ignored(shard: Shard) -> str:
    """Say that no pixel of a shard has a class: nothing could be learnt from it or scored on it."""
    table = shard.classes.name if shard.classes else "none"
    return (
        f"Every pixel in the label maps of {shard.path} is ignored by the class table {table!r}; choose the table that "
        "they were made for, or leave the shard out."
    )


def refuse_faulty(shard: Shard, *, labels: bool) -> None:
    """Raise `UserError` for the first image (or label) that cannot be used, with the number of others."""
    faults = check_shard(shard, labels=labels, progress=progress_line(f"checking images of {shard.name}"))
    if faults:
        more = f" ({len(faults) - 1} more images of {shard.name} have faults)" if len(faults) > 1 else ""
        raise UserError(faults[0] + more)


def check_labelled(shard: Shard, table: ClassTable, why: str) -> None:
    """Refuse a shard with images that have no label, or whose classes are not those of the run."""
    missing = sum(entry.label is None for entry in shard.entries)
    if missing:
        raise UserError(
            f"{missing} of {len(shard)} images of {shard.path} have no label, but {why}; add the labels or leave the "
            "images out."
        )
    own = shard.classes
    if own is None or own.names == table.names:
        return
    if own.num_classes != table.num_classes:
        raise UserError(
            f"{shard.path} has {own.num_classes} classes ({own.name}), the run has {table.num_classes} "
            f"({table.name}); use one class table."
        )
    theirs, ours = next((a, b) for a, b in zip(own.names, table.names, strict=True) if a != b)
    raise UserError(
        f"{shard.path} calls a class '{theirs}' ({own.name}) that the run calls '{ours}' ({table.name}); use one "
        "class table."
    )


def check_truth(shard: Shard) -> None:
    """Read all labels, and of images the headers, with progress; `UserError` as `check_label_files` raises it."""
    check_label_files(shard, progress_line(f"checking labels of {shard.name}"), sizes=True)


def check_single_features(
    shard: Shard, transforms: Transforms, stride: int, batch: int, key: str = "local.batch"
) -> None:
    """Raise `UserError` where an image that is alone in its batch is no larger than one cell of the features.

    stride: pixels a cell. batch: images in a step; where that is more than 1, an image is alone only if a site has no
    other. key: the setting that says so. Not for batch norms that stay as received (``network.freeze`` "batchnorm").
    """
    if batch > 1 and len(shard) > 1:
        return
    height, width = transforms.height, transforms.width
    cut = transforms.crop != "none"
    for index in range(1 if cut or transforms.resize_height else len(shard)):
        if not cut:
            size = (transforms.resize_height, transforms.resize_width)
            height, width = (
                max(1, round(side * transforms.scale_min))
                for side in (size if size[0] else trained_size(shard, index))
            )
        if max(height, width) <= stride:
            raise UserError(
                f"{shard.image_path(index)} would be trained on at {width} x {height} pixels and alone in a batch "
                f"({len(shard)} images, {key} = {batch}), a single feature at output stride {stride}, on which batch "
                f"norm cannot train; give larger images, or another {key}."
            )


def check_measured(shard: Shard, transforms: Transforms, stride: int) -> None:
    """Raise `UserError` where batch norm statistics cannot be measured on whole images (see `image_size`).

    Images of several sizes make no batch, and one small image is a single feature, which has no variance.
    """
    height, width = transforms.eval_height, transforms.eval_width
    if len(shard) > 1:  # batches are of nearly equal size
        if not height:
            _check_one_size(
                shard,
                entry_size,
                "network.site-statistics and final-statistics look at batches of whole images; set "
                "transforms.eval-height and eval-width.",
            )
        return
    if not height:
        height, width = entry_size(shard, 0)
    if max(height, width) <= stride:
        raise UserError(
            f"{shard.image_path(0)} is the only image of {shard.name} and {width} x {height} pixels are a single "
            f"feature at output stride {stride}, of which network.site-statistics and final-statistics can measure "
            "no variance; set transforms.eval-height and eval-width, or leave the site out."
        )


def check_batch_sizes(shard: Shard, transforms: Transforms, batch: int, key: str = "local.batch") -> None:
    """Raise `UserError` where images that are not cropped would differ in size (see `image_size`).

    ``batch`` is the number of images in a step, ``key`` the setting that says so.
    """
    if transforms.crop != "none" or batch == 1:
        return
    advice = f"set transforms.crop to 'random' or 'resized', or {key} to 1"
    if transforms.scale_min < transforms.scale_max:
        raise UserError(
            f"transforms.scale-min is {transforms.scale_min:g} and scale-max {transforms.scale_max:g}, but "
            f"transforms.crop is 'none', so that the images of a batch would differ in size; {advice}."
        )
    if transforms.resize_height:
        return
    _check_one_size(
        shard,
        trained_size,
        f"transforms.crop is 'none' and a batch needs one size; {advice}, or transforms.resize-height and "
        "resize-width.",
    )


def _check_one_size(shard: Shard, size_of: Callable[[Shard, int], tuple[int, int]], why: str) -> None:
    first = size_of(shard, 0)
    for index in range(1, len(shard)):
        size = size_of(shard, index)
        if size != first:
            raise UserError(
                f"{shard.image_path(index)} has {size[1]} x {size[0]} pixels and {shard.image_path(0)} "
                f"{first[1]} x {first[0]}, but {why}"
            )


def check_batches(shard: Shard, config: RunConfig) -> None:
    """Ask all of the above for a site of a run; raises `UserError`."""
    check_batch_sizes(shard, config.transforms, config.local.batch)
    stride = config.network.output_stride
    if config.network.freeze != "batchnorm":
        check_single_features(shard, config.transforms, stride, config.local.batch)
    if config.network.site_statistics or config.network.final_statistics:
        check_measured(shard, config.transforms, stride)


def check_shard_size(images: int, name: str, config: RunConfig) -> None:
    """Raise `UserError` where a shard has fewer images than a batch, or than the neighbours of one and itself."""
    if not config.loss.facts.steps:  # sums over a whole shard know neither batches nor neighbors
        return
    local = config.local
    needs = {"local.batch": local.batch}
    if OBJECTIVES.get(config.loss.objective).needs_neighbours(config):
        needs["local.neighbours"] = local.neighbours + 1
    key = max(needs, key=lambda name: needs[name])
    if images < needs[key]:
        largest = images - (key == "local.neighbours")
        advice = f"set {key} to at most {largest} or add images" if largest else "add images"
        raise UserError(
            f"{name} holds {images} image{'s' if images != 1 else ''}, but {key} = {getattr(local, key[6:])} "
            f"needs at least {needs[key]}; {advice}."
        )


def check_shard_fits(shard: Shard, config: RunConfig) -> None:
    """Raise `UserError` where a shard's images do not make the batches that the run's task trains on.

    Of a task that opens no labels, sizes are those of the images: its batches are, and no label file is looked at.
    """
    if config.facts.frozen_backbone:
        check_shard_size(len(shard), shard.name, config)
    else:
        check_batches(shard if config.facts.opens_labels else without_labels(shard), config)
