"""Checks before a run: cached features, class tables, scored shards, and the checkpoint to go on from.

Flower's engine takes seconds to start and a run takes minutes: whatever can be wrong with settings, files
and folders is said first, in one sentence. Each task has the list of its checks (`ServerTask.check_run`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from common.checkpoint import Checkpoint
from common.data.check import refuse_faulty
from common.data.classes import ClassTable, known_table
from common.data.manifest import Shard
from common.errors import UserError
from common.features.cache import find_cache
from common.features.preflight import backbone_needs, check_folder
from common.models.input_size import fitted_to
from common.settings.schema import RunConfig
from common.system.device import run_in_subprocess
from server.evaluation.scorer import evaluation_shard, evaluation_shards, known_classes, site_shards


def scored_by_clusters(config: RunConfig, shards: Sequence[Shard]) -> list[Shard]:
    """Return the shards on which clusters are scored, at the server or on the sites; labels may be missing."""
    if config.eval.where == "sites" and config.eval.shard:
        return site_shards(config, [shard.name for shard in shards])
    found = evaluation_shard(config)
    return [] if found is None else [found]


def check_cached_features(config: RunConfig, shards: Sequence[Shard]) -> tuple[int, str]:
    """Make sure that every shard's features are cached or can be; return channels and weights hash.

    Raises `UserError` for images that cannot be read, weights that do not fit, and a disk that is too full.
    """
    channels, weights_hash = 0, ""
    missing: list[tuple[Shard, Path]] = []
    for shard in shards:
        folder = Path(config.simulation.cache or shard.path.parent / "cache")
        header = find_cache(shard, fitted_to(config, shard).model, config.cache, folder, config.seed)
        if header is None:
            missing.append((shard, folder))
        else:
            channels, weights_hash = header.channels, header.weights_hash
    if missing:
        counts: dict[Path, int] = {}
        for shard, folder in missing:
            counts[folder] = counts.get(folder, 0) + len(shard)
        channels, weights_hash, needed = run_in_subprocess(
            backbone_needs,
            fitted_to(config, missing[0][0]).model,
            config.cache,
            config.seed,
            list(counts.values()),
        )
        for folder, size in zip(counts, needed, strict=True):
            check_folder(folder, size)
    for shard, _ in missing:
        refuse_faulty(shard, labels=False)
    return channels, weights_hash


def check_resumable(checkpoint: Checkpoint, config: RunConfig, channels: int, weights_hash: str) -> None:
    """Refuse a checkpoint of another model with a sentence that says what differs."""
    kept = checkpoint.config.model
    differing = [key for key, value in config.model.model_dump().items() if value != getattr(kept, key)]
    differing = [key for key in differing if key != "weights"]  # a path; the hash below is what counts
    if differing:
        key = differing[0]
        raise UserError(
            f"The checkpoint was made with model.{key.replace('_', '-')} = {getattr(kept, key)!r}, this run has "
            f"{getattr(config.model, key)!r}; use the recipe that the checkpoint was made with."
        )
    if checkpoint.channels != channels or checkpoint.weights_hash != weights_hash:
        raise UserError(
            f"The checkpoint belongs to backbone weights {checkpoint.weights_hash[:12]} ({checkpoint.channels} "
            f"channels), the sites have {weights_hash[:12]} ({channels}); use the same weights file."
        )


class Restores(Protocol):
    """The part of a task that knows whether a checkpoint is of its network."""

    def signature(self) -> str:
        """Return the identity of the architecture."""

    def restore(self, checkpoint: Checkpoint) -> object:
        """Return the state of a checkpoint, or raise `UserError`."""


def check_same_network(checkpoint: Checkpoint, config: RunConfig, task: Restores) -> None:
    """Refuse a checkpoint of another network, or of a state that the settings cannot go on from."""
    if checkpoint.weights_hash != task.signature():
        raise UserError(
            f"The checkpoint {config.resume} holds another network than the settings ask for; use the recipe that "
            "it was made with."
        )
    task.restore(checkpoint)


def named_shards(config: RunConfig, shards: Sequence[Shard]) -> list[Shard]:
    """Give the run's named class table to shards without one: sites go by it too."""
    return [replace(shard, classes=shard.classes or known_table(config.eval.classes)) for shard in shards]


def need_classes(config: RunConfig) -> ClassTable:
    """Return the class table of a run; raises `UserError` where none is known."""
    table = known_classes(config)
    if table is None:
        raise UserError(
            f"Task '{config.task}' needs a class table and none is known; name one by eval.classes, for example "
            "camvid."
        )
    return table


def scored_shards(config: RunConfig, sites: Sequence[str]) -> list[Shard]:
    """Return the labelled shards that a run is scored on, at the server or on the sites."""
    if config.eval.where != "sites":
        return evaluation_shards(config)
    if not config.eval.shard:
        raise UserError(
            "eval.where is 'sites' but eval.shard is empty; name their labelled manifests, for example "
            "'{site}-val.jsonl', or set eval.where to 'none'."
        )
    return named_shards(config, site_shards(config, sites))
