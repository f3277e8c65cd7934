"""Pretraining: the model that adaptation starts from.

Supervised training on labelled source images that lie at the server, each in the style of a site drawn at
random (LADD: styles travel, images do not). The network is chosen by nothing: the last step's is kept. Where the
run directory holds the state of one that was stopped, it goes on there (`server.adaptation.pretrain_snapshot`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.checkpoint import arrays_hash, load_checkpoint
from common.data.classes import ClassTable, load_table
from common.data.data_loader import ImageDataset
from common.data.manifest import Shard, read_shard
from common.errors import UserError
from common.losses.reductions import crucial_classes, labelled_loss
from common.models.network import build_network, load_arrays, network_signature, network_to_arrays
from common.models.parameter_groups import split_flat
from common.settings.schema import RunConfig
from common.styles.bank import STYLES_PICTURE, StyleBank
from common.system.cli import progress_line
from common.system.device import choose_device, room_on_device
from common.wire import Arrays
from server.adaptation.pretrain_snapshot import (
    IMAGES,
    STYLES,
    WEIGHTS,
    Origin,
    Snapshot,
    images_hash,
    load_snapshot,
    save_snapshot,
    state_file,
)
from server.adaptation.pretrain_steps import ResumableStepper, take_steps

log = logging.getLogger(__name__)

SHOWN_IMAGES = 3  # rows of the style sheet; more do not fit a screen


def source_shard(config: RunConfig) -> Shard:
    """Read the labelled source manifest; a relative path may start in the shards folder.

    Its class table is its own: raw values of the source are not those of the sites.
    """
    if not config.source.shard:
        raise UserError(
            "Task 'adaptation' starts from a pretrained model and none is named: set source.checkpoint, or "
            "source.shard to the labelled images to pretrain on."
        )
    path, root = Path(config.source.shard), config.source.data_root
    if config.simulation.shards and not path.is_absolute() and not path.is_file():
        path = Path(config.simulation.shards) / path
        root = root or config.simulation.data_root
    table = load_table(config.eval.classes) if config.eval.classes else None
    shard = read_shard(path, root or None)
    return shard if shard.classes is not None else replace(shard, classes=table)


def load_pretrained(config: RunConfig, table: ClassTable) -> Arrays:
    """Read a pretrained network.

    Raises `UserError` where it has another architecture or other classes, and where its sites shared nothing, so
    that the shared network is the one that they started from.
    """
    saved = load_checkpoint(config.source.checkpoint)
    wanted = network_signature(table.num_classes, config.network)
    if saved.weights_hash != wanted:
        raise UserError(
            f"source.checkpoint {config.source.checkpoint} holds another network (task {saved.config.task}, "
            f"{_form(saved.config, saved.channels)}) than the settings ({_form(config, table.num_classes)}); pretrain "
            "with this recipe."
        )
    if saved.classes is not None and saved.classes.names != table.names:
        theirs, ours = next((a, b) for a, b in zip(saved.classes.names, table.names, strict=True) if a != b)
        raise UserError(
            f"source.checkpoint {config.source.checkpoint} calls a class '{theirs}' ({saved.classes.name}) that the "
            f"run calls '{ours}' ({table.name}); pretrain with the run's class table."
        )
    # round 0 of such a run is the pretrained model itself
    if saved.config.centroids.share == "none" and saved.round:
        raise UserError(
            f"source.checkpoint {config.source.checkpoint} is of a run with centroids.share = 'none', whose sites have "
            "networks of their own and none in common; give a checkpoint of a run that shares one."
        )
    log.info("starting from %s, round %d", config.source.checkpoint, saved.round)
    return dict(saved.head)


def _form(config: RunConfig, classes: int) -> str:
    """Say of a network what a checkpoint has to have in common with it."""
    network = config.network
    return f"stride {network.output_stride}, rates {network.rates}, normalize {network.normalize}, {classes} classes"


def pretrained_model(
    config: RunConfig,
    table: ClassTable,
    start: Mapping[str, np.ndarray],
    bank: StyleBank | None,
    run_dir: Path,
) -> Arrays:
    """Return the pretrained network, flat by name: loaded where the settings name one, else trained from ``start``.

    Raises `UserError` where the run directory holds the state of a pretraining with other settings or inputs.
    """
    if config.source.checkpoint:
        return load_pretrained(config, table)
    shard = source_shard(config)
    device = choose_device("auto")
    settings = config.source
    transferred = bank is not None and config.style.transfer != "none"
    restyle = bank.restyle(config.style, settings.plain) if bank is not None and transferred else None
    images = ImageDataset(
        shard, config.transforms, (config.seed, "source"), True, shard.classes, device=device, restyle=restyle
    )
    if bank is not None and transferred:
        draw_styles(images, bank, config, run_dir)
    model = build_network(
        table.num_classes, config.network.model_copy(update={"weights": "random"}), config.seed
    )
    load_arrays(model, *split_flat(model, start))
    model.to(device)
    crucial = crucial_classes(config.reduction, table).to(device)
    # steps win over epochs: they say the same work for any number of images
    steps = settings.steps or settings.epochs * math.ceil(len(images) / settings.batch)
    log.info("pretraining on %d labelled images, %d steps", len(images), steps)
    kept = state_file(run_dir)
    styles = arrays_hash(dict(bank.styles)) if bank is not None and transferred else ""
    inputs = {IMAGES: images_hash(shard), WEIGHTS: arrays_hash(dict(start)), STYLES: styles}
    origin = Origin.of(config, inputs)

    def keep(snapshot: Snapshot) -> None:
        save_snapshot(kept, snapshot, origin)
        mean = snapshot.loss / snapshot.step
        log.info("pretraining: %d of %d steps, mean loss %.4f, kept on disk", snapshot.step, steps, mean)

    advice = f"lower source.batch ({settings.batch}) or end what else runs on the GPU"
    with room_on_device(advice):
        sgd = config.sgd.model_copy(update={"lr": settings.lr})
        stepper = ResumableStepper(model, sgd, first_step=0, total_steps=steps, seed=config.seed)
        before = load_snapshot(kept, origin) if kept.is_file() else None
        if before is not None:
            _resume(stepper, before, kept, config.seed)
        done = stepper.taken
        found = take_steps(
            stepper,
            images.batches(steps - done, settings.batch, skip=done),
            lambda logits, labels: labelled_loss(logits, labels, config.reduction, crucial),
            summed=0.0 if before is None else before.loss,
            keep=keep,
            progress=progress_line(f"pretraining after step {done}:" if done else "pretraining"),
        )
    log.info("pretrained: mean loss %.4f", found.loss)
    weights, statistics = network_to_arrays(model)
    return weights | statistics


def _resume(stepper: ResumableStepper, before: Snapshot, file: Path, seed: int) -> None:
    """Bring a new training to where a stopped one was, and say so."""
    try:
        stepper.resume(before, seed)
    except ValueError as error:
        raise UserError(
            f"The stopped pretraining {file} cannot be taken up: {error}; remove it to pretrain anew."
        ) from None
    log.info("going on with the pretraining in %s after step %d", file, before.step)


def draw_styles(source: ImageDataset, bank: StyleBank, config: RunConfig, run_dir: Path) -> Path:
    """Draw a few source images in every site's style."""
    from server.adaptation.style_picture import write_style_picture  # matplotlib is slow to load

    count = min(SHOWN_IMAGES, len(source))
    chosen = [round(i * (len(source) - 1) / max(count - 1, 1)) for i in range(count)]
    images = {Path(source.shard.entries[index].image).stem: source.image(index) for index in chosen}
    return write_style_picture(run_dir / "pictures" / STYLES_PICTURE, images, bank, config.style)
