"""Checks before training whether the images of a shard make batches that a network can take.

They need one size, and no batch may be a single feature: batch norm divides by its deviation.
"""

from __future__ import annotations

from collections.abc import Callable

from common.data.manifest import Shard
from common.data.reading import entry_size, trained_size
from common.errors import UserError
from common.settings.network import Transforms
from common.settings.schema import RunConfig


def check_single_features(
    shard: Shard, transforms: Transforms, stride: int, batch: int, key: str = "local.batch"
) -> None:
    """Raise `UserError` where an image that is alone in its batch is no larger than one cell of the features.

    stride: pixels a cell. batch: images in a step; the last one of an epoch takes what is left. key: the setting
    that says so. Not for batch norms that stay as received (``network.freeze`` "batchnorm").
    """
    if batch > 1 and len(shard) % batch != 1:
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
