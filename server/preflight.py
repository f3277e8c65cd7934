"""Checks before a run: shards, labels, features, source, and the checkpoint to go on from.

Flower's engine takes seconds to start and a run takes minutes: whatever can be wrong with settings, files
and folders is said first, in one sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from PIL import Image

from common.checkpoint import Checkpoint, load_checkpoint, resumed_file
from common.data.check import (
    check_batch_sizes,
    check_label_files,
    check_labelled,
    check_shard_fits,
    check_single_features,
    check_truth,
    refuse_faulty,
)
from common.data.classes import ClassTable, known_table
from common.data.images import entry_size, view_box
from common.data.manifest import Shard
from common.errors import UserError
from common.features.cache import find_cache
from common.features.preflight import backbone_needs, check_folder
from common.models.input_size import fitted_to
from common.settings.schema import RunConfig
from common.styles.bank import StyleBank
from common.styles.style import half_sizes
from common.system.cli import progress_line
from common.system.device import run_in_subprocess
from server.adaptation.pretrain import load_pretrained, source_shard
from server.adaptation.pretrain_snapshot import (
    IMAGES,
    Origin,
    check_origin,
    images_hash,
    state_file,
    stopped_pretraining,
)
from server.evaluation.shards import evaluation_shard, evaluation_shards, known_classes, site_shards
from server.run_dir import prepare_run_dir
from server.settings.network_rules import check_clusters


def check_cluster_run(config: RunConfig, shards: Sequence[Shard]) -> None:
    """Raise `UserError` for the first thing that would stop the run; make the run directory last.

    Images are decoded only where no feature cache vouches for them, labels only those that score. The
    backbone is loaded only where features are missing.
    """
    for shard in shards:
        check_shard_fits(shard, config)
    known_classes(config)
    checkpoint = load_checkpoint(config.resume) if config.resume else None
    resumed_from = None if checkpoint is None else resumed_file(config.resume, checkpoint)
    scored = scored_by_clusters(config, shards)
    channels, weights_hash = check_cached_features(config, [*shards, *scored])
    for shard in scored:
        check_label_files(shard, progress_line(f"checking labels of {shard.name}"))
    if checkpoint is not None:
        check_resumable(checkpoint, config, channels, weights_hash)
    prepare_run_dir(config, resumed_from)


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


def check_network_run(config: RunConfig, shards: Sequence[Shard], table: ClassTable, task: Restores) -> None:
    """Raise `UserError` for the first thing that would stop the run; make the run directory last.

    ``shards`` are what the sites will train on. Their labels are looked at for supervised training only.
    """
    check_clusters(config, len(shards))
    supervised = config.facts.opens_labels
    for shard in _with_table(config, shards):
        if supervised:
            check_labelled(shard, table, "task 'supervised' trains with labels")
        refuse_faulty(shard, labels=supervised)
        check_shard_fits(shard, config)
    stopped = stopped_pretraining(config)
    checkpoint = load_checkpoint(config.resume) if config.resume and stopped is None else None
    prepares = config.facts.pretrains and checkpoint is None  # else the source has done its part
    if prepares:
        check_source(config, table)
        if stopped is None:
            check_source_files(config)
        else:
            check_stopped(stopped, config)
    for shard in scored_shards(config, [shard.name for shard in shards]):
        check_labelled(shard, table, "the run is scored on it")
        refuse_faulty(shard, labels=True)
    if checkpoint is not None:
        check_same_network(checkpoint, config, task)
    run_dir = prepare_run_dir(
        config, stopped if checkpoint is None else resumed_file(config.resume, checkpoint)
    )
    if prepares:
        check_stopped(state_file(run_dir), config)


def check_same_network(checkpoint: Checkpoint, config: RunConfig, task: Restores) -> None:
    """Refuse a checkpoint of another network, or of a state that the settings cannot go on from."""
    if checkpoint.weights_hash != task.signature():
        raise UserError(
            f"The checkpoint {config.resume} holds another network than the settings ask for; use the recipe that "
            "it was made with."
        )
    task.restore(checkpoint)


def _with_table(config: RunConfig, shards: Sequence[Shard]) -> list[Shard]:
    """Give the run's named class table to shards without one: sites go by it too."""
    return [replace(shard, classes=shard.classes or known_table(config.eval.classes)) for shard in shards]


def check_start(config: RunConfig, run_dir: Path, stopped: Path | None) -> None:
    """Raise `UserError` where adaptation cannot begin; of the source, labels are read and headers of images.

    In a deployment nobody else asks before the sites do their part. ``stopped`` is the pretraining that the settings
    say to go on from, if any: it was begun with these labels.
    """
    check_source(config, need_classes(config))
    if stopped is not None:
        check_stopped(stopped, config)
    check_stopped(state_file(run_dir), config)
    if stopped is None and not config.source.checkpoint and not state_file(run_dir).is_file():
        check_truth(source_shard(config))


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
    return _with_table(config, site_shards(config, sites))


def check_source(config: RunConfig, table: ClassTable) -> None:
    """Refuse a source that adaptation cannot start from; of its images, headers are read at most."""
    if config.source.checkpoint:
        load_pretrained(config, table)
        return
    shard = source_shard(config)
    check_labelled(shard, table, "a source is trained on with labels")
    if config.source.styles:
        StyleBank.load(config.source.styles, config.style).restyle(
            config.style
        )  # one that is empty is refused too
    if config.style.transfer in ("fourier", "spectra"):
        check_window(shard, config)


def check_source_files(config: RunConfig) -> None:
    """Refuse a source with images or labels that cannot be read, or that make no batches; all are decoded."""
    if config.source.checkpoint:
        return
    shard, key = source_shard(config), "source.batch"
    refuse_faulty(shard, labels=True)
    check_batch_sizes(shard, config.transforms, config.source.batch, key)
    check_single_features(shard, config.transforms, config.network.output_stride, config.source.batch, key)


def check_stopped(file: Path, config: RunConfig) -> None:
    """Refuse to go on with a pretraining of other settings or images; no file: nothing to go on with."""
    if file.is_file():
        check_origin(file, Origin.of(config, {}))  # a shard is there only where the settings are the same
        check_origin(file, Origin.of(config, {IMAGES: images_hash(source_shard(config))}))


def check_window(shard: Shard, config: RunConfig) -> None:
    """Refuse a source image that is smaller than the window of frequencies that it would be given."""
    rows, columns = (2 * half + 1 for half in half_sizes(config.style))
    for index in range(len(shard)):
        if least_side(shard, index) >= max(rows, columns):
            continue
        height, width = entry_size(shard, index)
        if height < rows or width < columns:
            raise UserError(
                f"{shard.image_path(index)} has {width} x {height} pixels, but the style window has {columns} x {rows} "
                "frequencies, and no picture has more of them than pixels; choose a smaller window (style.side, "
                "half-size or fraction), or leave the image out."
            )


def least_side(shard: Shard, index: int) -> int:
    """Return the shorter side of an image in pixels, whichever way up it is; 0 where its header cannot be read.

    `entry_size` wants to know the orientation as well, for which Pillow decodes all of a PNG.
    """
    try:
        with Image.open(shard.image_path(index)) as opened:
            width, height = opened.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0
    left, top, right, bottom = view_box(shard.entries[index].view, height, width)
    return min(right - left, bottom - top)
