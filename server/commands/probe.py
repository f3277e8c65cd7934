"""The command that fits a linear probe, with labels, on a frozen checkpoint and scores it on another shard.

A linear probe: the usual measure of a representation beside clustering. It is fitted on one labelled shard (or
several) and scored on another; the checkpoint stays as it is, and training never comes here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from common.checkpoint import Checkpoint, load_checkpoint
from common.data.classes import ClassTable, load_table
from common.data.manifest import Shard, read_shard
from common.errors import UserError
from common.evaluation.clusters import (
    EvalProtocol,
    apply_protocol,
    check_backbone,
    evaluate_segmenter,
    mirrored_features,
)
from common.evaluation.crf import refine_logits
from common.evaluation.metrics import scores
from common.evaluation.probe import (
    MOST_OF_AN_IMAGE,
    PIXELS,
    LinearProbe,
    fit_linear,
    join_pixels,
    sample_pixels,
)
from common.features.cache import open_features
from common.features.source import Features
from common.models.input_size import fitted_to
from common.models.segmenter import Geometry, Segmenter
from common.models.site_models import chosen_model
from common.settings.unsupervised import Model
from common.system.atomic import atomic_write_text
from common.system.device import choose_device
from server.commands.evaluate import class_lines, protocol_text

On = Literal["code", "features"]


def probe_checkpoint(
    checkpoint: str | Path,
    train: Sequence[str | Path],
    test: str | Path,
    data_root: str | Path | None = None,
    classes: str | Path | None = None,
    json_path: str | Path | None = None,
    *,
    on: On = "code",
    site: str | None = None,
    steps: int = 200,
    protocol: EvalProtocol = "label-size",
    crf: bool = False,
    flip: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Fit a linear classifier on a frozen checkpoint; return (and write) the record of ``probe --json``.

    Args:
        checkpoint: a ``round-NNNN.safetensors`` file or a run directory (its newest round).
        train: labelled manifests to fit on, for example all sites of a shards folder.
        test: labelled manifest to score on; it may share no image with ``train``.
        data_root: where the manifests' paths start, if not as recorded.
        classes: name or JSON file of the class table, if not as recorded.
        json_path: where the record goes; written in one step, at the end.
        on: "code" for what the head makes of the features, "features" for the backbone's alone.
        site: whose own head, of a run whose sites do not share it; features need none.
        steps: of L-BFGS, at most.
        protocol: see `evaluate_checkpoint`; it holds for both shards.
        crf: refine what is scored with the dense CRF; unaries are the classifier's own log-probabilities.
        flip: average the codes that are scored with those of the mirrored image. As published, neither is part
            of the fit.

    Raises:
        UserError: checkpoint, shards, class tables or weights do not fit together, labels are missing, or the site
            whose head is meant.
    """
    started = time.monotonic()
    saved = load_checkpoint(checkpoint)
    if not saved.config.facts.frozen_backbone:
        raise UserError(
            f"Checkpoint {checkpoint} is of task '{saved.config.task}': a network that was trained with labels has "
            "no frozen features to probe; score it with `evaluate`."
        )
    if on == "code" or site is not None:
        saved = chosen_model(saved, str(checkpoint), site, needed=("head",))
    table = load_table(classes) if classes is not None else None
    fitted_on = [read_shard(path, data_root, table) for path in train]
    scored_on = read_shard(test, data_root, table)
    known = _known_classes([*fitted_on, scored_on])
    _check_apart(fitted_on, scored_on)
    model, _, score_at = apply_protocol(fitted_to(saved.config, scored_on).model, protocol)
    chosen = choose_device("auto")

    def features_of(shard: Shard) -> Features:
        cache = shard.path.parent / "cache"
        found = open_features(shard, model, saved.config.cache, cache, chosen, saved.config.seed, progress)
        check_backbone(saved, found.weights_hash, found.channels, str(checkpoint))
        return found

    segmenter = _frozen(saved, model, on).to(chosen)
    # the fit has to fit into memory, however many images there are
    per_image = min(MOST_OF_AN_IMAGE, max(1, PIXELS // sum(map(len, fitted_on))))
    pixels = join_pixels(
        [
            sample_pixels(
                segmenter,
                features_of(shard),
                shard,
                model,
                seed=saved.config.seed,
                per_image=per_image,
                score_at=score_at,
                progress=progress,
            )
            for shard in fitted_on
        ]
    )
    if len(np.unique(pixels.classes)) < 2:
        raise UserError(
            f"The labels of {', '.join(shard.name for shard in fitted_on)} show fewer than two classes; "
            "there is nothing to tell apart, so give --train more images."
        )
    fit = fit_linear(pixels.codes, pixels.classes, known.num_classes, steps)
    features = features_of(scored_on)
    probe = LinearProbe(segmenter, fit)
    found = evaluate_segmenter(
        probe,
        features,
        scored_on,
        model,
        score_at=score_at,
        mirrored=mirrored_features(scored_on, model, saved.config.seed, chosen) if flip else None,
        refine=refine_logits if crf else None,
        progress=progress,
    )
    assert found.confusion is not None, "the shard has labels and classes"
    # outputs are classes: nothing to match
    identity = np.arange(known.num_classes)
    record = {
        "checkpoint": str(checkpoint),
        "round": saved.round,
        "run": saved.config.name,
        "seed": saved.config.seed,
        "on": on,
        "site": site,
        "train": {
            "splits": [shard.name for shard in fitted_on],
            "images": pixels.images,
            "pixels": len(pixels.classes),
            "steps": fit.steps,
            "loss": fit.loss,
        },
        "split": scored_on.name,
        "images": found.num_images,
        "labelled_images": found.num_labelled,
        **scores(found.confusion, identity).to_dict(known.names),
        "confusion": found.confusion.to_list(),
        "matching": "identity",
        "classes": list(known.names),
        "protocol": protocol,
        "crf": crf,
        "flip": flip,
        "weights_sha256": features.weights_hash,
        "seconds": round(time.monotonic() - started, 3),
    }
    if json_path is not None:
        atomic_write_text(json_path, json.dumps(record, indent=2) + "\n")
    return record


def _frozen(saved: Checkpoint, model: Model, on: On) -> Segmenter:
    """Return what the probe sits on: the checkpoint's head, or nothing but the backbone."""
    if on == "code":
        return Segmenter.from_checkpoint(saved, model=model)
    return Segmenter(nn.Identity(), torch.zeros(1, saved.channels), Geometry.of(model))


def _known_classes(shards: Sequence[Shard]) -> ClassTable:
    """Return the one class table of all shards; raises `UserError` where labels or a table are missing."""
    for shard in shards:
        if all(entry.label is None for entry in shard.entries):
            raise UserError(
                f"{shard.path} names no label; a linear probe is fitted and scored with labels, so give "
                "labelled manifests."
            )
        if shard.classes is None:
            raise UserError(
                f"The manifest {shard.path} names labels but no class table is known; "
                "name one (--classes camvid, or a JSON file)."
            )
    tables = [shard.classes for shard in shards if shard.classes is not None]
    for shard, table in zip(shards, tables, strict=True):
        if table.names != tables[0].names:
            raise UserError(
                f"{shard.path} has the classes of {table.name!r} but {shards[0].path} those of "
                f"{tables[0].name!r}; name one table for both (--classes)."
            )
    return tables[0]


def _check_apart(fitted_on: Sequence[Shard], scored_on: Shard) -> None:
    """Raise `UserError` where an image would be fitted to and scored."""
    seen = {shard.image_path(i) for shard in fitted_on for i in range(len(shard))}
    common = [i for i in range(len(scored_on)) if scored_on.image_path(i) in seen]
    if common:
        raise UserError(
            f"{len(common)} images of {scored_on.path} are among those to fit on, the first is "
            f"{scored_on.entries[common[0]].image}; score on others."
        )


def probe_text(record: dict[str, Any]) -> str:
    """Return a record as lines for a terminal."""
    train = record["train"]
    where = "codes of the head" if record["on"] == "code" else "features of the backbone"
    where += f" of {record['site']}" if record["site"] is not None else ""
    run = f"{record['run']}, seed {record['seed']}, round {record['round']}"
    sample = f"{train['pixels']} pixels of {train['images']} images"
    lines = [
        f"{run}: linear probe, with labels, on the {where}",
        f"  fitted to {sample} in {train['steps']} steps (cross entropy {train['loss']:.3f})",
        f"  scored on {record['split']}: {record['labelled_images']} images, {protocol_text(record)}",
        f"  mIoU {100 * record['miou']:6.1f} %   (all classes: {100 * record['miou_all']:.1f} %)",
        f"  accuracy {100 * record['accuracy']:.1f} %",
    ]
    return "\n".join([*lines, *class_lines(record["per_class_iou"])])
