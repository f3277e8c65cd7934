"""Checks before training on a shard: number and sizes of images, feature cache, backbone and disk space.

Server and site run the same checks, each on what lies on its own machine. Nothing here writes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from common.data.check import check_batches
from common.data.manifest import Shard
from common.errors import UserError
from common.features import store
from common.features.cache import features_header, features_key
from common.models.backbone import Backbone, load_backbone
from common.settings.objectives import OBJECTIVES
from common.settings.schema import RunConfig
from common.settings.unsupervised import Cache, Model
from common.system.device import choose_device


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
    """Raise `UserError` where a shard's images do not make the batches that the run's task trains on."""
    if config.facts.frozen_backbone:
        check_shard_size(len(shard), shard.name, config)
    else:
        check_batches(shard, config)


def find_cache(
    shard: Shard, model: Model, cache: Cache, cache_dir: Path, seed: int, device: str | None = None
) -> store.Header | None:
    """Return the header of a shard's feature cache where a fitting one exists for this device (None: as found).

    Raises `UserError` where an image or the weights file is missing.
    """
    found = store.read(cache_dir, features_key(shard, model, cache, seed, choose_device(device)))
    return None if found is None else found.header


def cache_bytes(images: int, backbone: Backbone, model: Model, cache: Cache, seed: int) -> int:
    """Return the disk space that the features of so many images need."""
    header = features_header(images, backbone, model, cache, seed)
    return sum(header.files.values())


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
