"""Checks before features are made: the backbone loads, and the disk has room for them.

Server and site run the same checks, each on what lies on its own machine. Nothing here writes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from common.errors import UserError
from common.features.store import Header
from common.models.backbone import Backbone, load_backbone
from common.settings.unsupervised import Cache, Model


def cache_bytes(images: int, backbone: Backbone, model: Model, cache: Cache, seed: int) -> int:
    """Return the disk space that the features of so many images need."""
    return Header.describe(images, backbone, model, cache, seed).size


def backbone_needs(model: Model, cache: Cache, seed: int, images: list[int]) -> tuple[int, str, list[int]]:
    """Load the backbone; return its channels, its weights hash, and the disk space for each number of images.

    Raises `UserError` for weights that are missing or do not fit.
    """
    backbone = load_backbone(model, seed, "cpu")
    needed = [cache_bytes(count, backbone, model, cache, seed) for count in images]
    return backbone.channels, backbone.weights_hash, needed


def check_folder(folder: Path, needed: int = 0, what: str = "cache folder") -> int:
    """Raise `UserError` where a folder could not be made or written, or has less than ``needed`` bytes left.

    Returns the free bytes. The folder need not exist yet; it is not made.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        if not place.is_dir():
            raise NotADirectoryError(20, f"{place} is a file")
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(13, "no permission")
        # permission bits do not say everything; writing does
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(
            f"The {what} {folder} cannot be written ({error.strerror or error}); choose one that you may "
            "write to."
        ) from None
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"The features need {needed / 1e6:.1f} MB but the disk of the {what} {folder} has {free / 1e6:.1f} MB "
            "left; free some space, or choose a cache folder on another disk."
        )
    return free
