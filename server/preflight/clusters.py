"""Checks before a run without labels: shards, features, weights and the checkpoint to go on from.

Flower's engine takes seconds to start and a run takes minutes: whatever can be wrong with settings, files
and folders is said first, in one sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.checkpoint import Checkpoint, load_checkpoint, resumed_file
from common.data.check import check_label_files, refuse_faulty
from common.data.manifest import Shard
from common.errors import UserError
from common.features.preflight import backbone_needs, check_folder, check_shard_size, find_cache
from common.settings.schema import RunConfig
from common.system.progress import progress_line
from common.system.subprocess import run_in_subprocess
from server.evaluation.shards import evaluation_shard, known_classes, site_shards
from server.run_dir import prepare_run_dir


def check_cluster_run(config: RunConfig, shards: Sequence[Shard]) -> None:
    """Raise `UserError` for the first thing that would stop the run; make the run directory last.

    Images are decoded only where no feature cache vouches for them, labels only those that score. The
    backbone is loaded only where features are missing.
    """
    for shard in shards:
        check_shard_size(len(shard), shard.name, config)
    known_classes(config)
    checkpoint = load_checkpoint(config.resume) if config.resume else None
    resumed_from = None if checkpoint is None else resumed_file(config.resume, checkpoint)
    scored: list[Shard] = []
    if config.eval.where == "sites" and config.eval.shard:
        scored = site_shards(config, [shard.name for shard in shards])
    elif (shard_of_server := evaluation_shard(config)) is not None:
        scored = [shard_of_server]
    channels, weights_hash = check_features(config, [*shards, *scored])
    for shard in scored:
        check_label_files(shard, progress_line(f"checking labels of {shard.name}"))
    if checkpoint is not None:
        check_resumable(checkpoint, config, channels, weights_hash)
    prepare_run_dir(config, resumed_from)


def check_features(config: RunConfig, shards: Sequence[Shard]) -> tuple[int, str]:
    """Make sure that every shard's features are cached or can be; return channels and weights hash.

    Raises `UserError` for images that cannot be read, weights that do not fit, and a disk that is too full.
    """
    channels, weights_hash = 0, ""
    missing: list[tuple[Shard, Path]] = []
    for shard in shards:
        folder = Path(config.simulation.cache or shard.path.parent / "cache")
        header = find_cache(shard, config.model, config.cache, folder, config.seed)
        if header is None:
            missing.append((shard, folder))
        else:
            channels, weights_hash = header.channels, header.weights_hash
    if missing:
        counts: dict[Path, int] = {}
        for shard, folder in missing:
            counts[folder] = counts.get(folder, 0) + len(shard)
        channels, weights_hash, needed = run_in_subprocess(
            backbone_needs, config.model, config.cache, config.seed, list(counts.values())
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
