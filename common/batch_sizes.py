"""Will the images of a shard have one size in a batch, asked before anything is trained?"""

from __future__ import annotations

from common.config_network import Transforms
from common.data.manifest import Shard
from common.data.views import entry_size
from common.errors import UserError


def check_batch_sizes(shard: Shard, transforms: Transforms, batch: int, key: str = "local.batch") -> None:
    """Raise `UserError` where images that are not cropped would differ in size; only headers of files are read.

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
    first = entry_size(shard, 0)
    for index in range(1, len(shard)):
        size = entry_size(shard, index)
        if size != first:
            raise UserError(
                f"{shard.image_path(index)} has {size[1]} x {size[0]} pixels and {shard.image_path(0)} "
                f"{first[1]} x {first[0]}, but transforms.crop is 'none' and a batch needs one size; {advice}, or "
                "transforms.resize-height and resize-width."
            )
