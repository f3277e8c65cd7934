"""How good is a checkpoint on any labelled shard?"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common import config
from common.atomic import atomic_write_text
from common.checkpoint import Checkpoint, load_checkpoint
from common.data.classes import ClassTable, load_table
from common.data.manifest import read_shard
from common.device import choose_device
from common.errors import UserError
from common.evaluate import Evaluation, Refine, ScoreAt, evaluate, mirrored_features
from common.features import open_features
from common.metrics import match, scores
from common.segmenter import Segmenter, Upsample

Matching = Literal["hungarian", "many-to-one", "checkpoint"]
Protocol = Literal["label-size", "center-320"]


def evaluate_checkpoint(
    checkpoint: str | Path,
    shard: str | Path,
    data_root: str | Path | None = None,
    classes: str | Path | None = None,
    crf: bool = False,
    flip: bool = False,
    json_path: str | Path | None = None,
    *,
    matching: Matching | None = None,
    protocol: Protocol = "label-size",
    cache_dir: str | Path | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score a checkpoint on a shard and return (and write) the record of ``evaluate --json``.

    Args:
        checkpoint: a ``round-NNNN.safetensors`` file or a run directory (its newest round).
        shard: manifest; a ``partition.json`` beside it names root and classes.
        data_root: where the manifest's paths start, if not as recorded.
        classes: name or JSON file of the class table, if not as recorded.
        crf: refine with the dense CRF.
        flip: average codes with those of the mirrored image.
        json_path: where the record goes; written in one step, at the end.
        matching: "checkpoint" uses the names that clusters got while training, so that these labels are
            only scored against, not matched on. By default as the run's settings say.
        protocol: "center-320" is the reference evaluation: shorter side to 320 by nearest neighbour,
            central 320 x 320, codes enlarged before they are compared. Scores are then on that square only.
        cache_dir: where features are cached; by default ``cache`` beside the manifest.

    Without any label the quality fields are None and the label-free figures stand alone.

    Raises:
        UserError: checkpoint, shard, class table or weights do not fit together.
    """
    started = time.monotonic()
    saved = load_checkpoint(checkpoint)
    table = load_table(classes) if classes is not None else None
    pictures = read_shard(shard, data_root, table)
    how = matching or saved.config.eval.matching
    if how == "checkpoint" and saved.mapping is None:
        raise UserError(
            f"Checkpoint {checkpoint} names no classes (it was never scored); match on this shard: hungarian."
        )
    model, upsample, score_at = apply_protocol(saved.config.model, protocol)
    folder = Path(cache_dir) if cache_dir is not None else pictures.path.parent / "cache"
    chosen = choose_device(device)
    features = open_features(
        pictures, model, saved.config.cache, folder, device=chosen, seed=saved.config.seed, progress=progress
    )
    check_backbone(saved, features.weights_hash, features.channels, str(checkpoint))
    segmenter = Segmenter.from_checkpoint(saved, model=model, upsample=upsample).to(chosen)
    found = evaluate(
        segmenter,
        features,
        pictures,
        model,
        score_at=score_at,
        mirrored=mirrored_features(pictures, model, saved.config.seed, chosen) if flip else None,
        refine=crf_refinement() if crf else None,
        progress=progress,
    )
    record = {
        "checkpoint": str(checkpoint),
        "round": saved.round,
        "run": saved.config.name,
        "seed": saved.config.seed,
        "split": pictures.name,
        **quality(found, pictures.classes, how, saved.mapping),
        "protocol": protocol,
        "crf": crf,
        "flip": flip,
        "weights_sha256": features.weights_hash,
        "seconds": round(time.monotonic() - started, 3),
    }
    if json_path is not None:
        atomic_write_text(json_path, json.dumps(record, indent=2) + "\n")
    return record


def quality(
    found: Evaluation, classes: ClassTable | None, how: str, known_mapping: list[int] | None = None
) -> dict[str, Any]:
    """Return the quality fields of a record: matched once on the summed counts; all None without labels."""
    record: dict[str, Any] = {
        "images": found.num_images,
        "labelled_images": found.num_labelled,
        "pixels": None,
        "accuracy": None,
        "miou": None,
        "miou_all": None,
        "per_class_iou": None,
        "confusion": None,
        "mapping": known_mapping,
        "matching": None,
        "classes": None if classes is None else list(classes.names),
        "mean_cosine": found.mean_cosine,
        "cluster_share": found.cluster_share,
        "entropy": found.entropy,
    }
    if found.confusion is None or classes is None:
        return record
    if how == "checkpoint":
        mapping = np.asarray(known_mapping, dtype=np.int64)
        highest = max(int(value) for value in mapping)
        if highest >= classes.num_classes:
            raise UserError(
                f"The checkpoint's clusters stand for {highest + 1} classes but the shard has "
                f"{classes.num_classes} ({classes.name}); match on this shard instead: hungarian."
            )
    else:
        mapping = match(found.confusion, "many-to-one" if how == "many-to-one" else "hungarian")
    scored = scores(found.confusion, mapping).to_dict(classes.names)
    return record | scored | {"confusion": found.confusion.to_list(), "matching": how}


def evaluation_text(record: dict[str, Any]) -> str:
    """Return a record as lines for a terminal."""
    lines = [f"{record['run']}, seed {record['seed']}, round {record['round']} on {record['split']}"]
    lines[0] += f": {record['images']} images"
    if record["miou"] is not None:
        extras = [name for name in ("crf", "flip") if record[name]]
        lines.append(
            f"  mIoU {100 * record['miou']:6.1f} %   (all classes: {100 * record['miou_all']:.1f} %)"
        )
        lines.append(f"  accuracy {100 * record['accuracy']:.1f} %   matching: {record['matching']}")
        lines[-1] += f"   protocol: {' + '.join([record['protocol'], *extras])}"
        lines += class_lines(record["per_class_iou"])
    lines.append(
        f"  mean cosine to the centroid {record['mean_cosine']:.3f}, evenness {record['entropy']:.3f}"
    )
    return "\n".join(lines)


def class_lines(per_class_iou: Mapping[str, float | None]) -> list[str]:
    """Return one line per class with its IoU."""
    width = max(len(name) for name in per_class_iou)
    return [
        f"  {name:<{width}}  " + ("  not in the labels" if value is None else f"{100 * value:5.1f} %")
        for name, value in per_class_iou.items()
    ]


def print_evaluation(record: dict[str, Any]) -> None:
    """Print `evaluation_text`."""
    print(evaluation_text(record))


def check_backbone(checkpoint: Checkpoint, weights_hash: str, channels: int, where: str) -> None:
    """Raise `UserError` where the backbone at hand is not the one that a checkpoint was trained on."""
    if checkpoint.channels != channels:
        raise UserError(
            f"Checkpoint {where} was trained on features of {checkpoint.channels} channels but the backbone "
            f"gives {channels}; use the backbone settings of the run."
        )
    if checkpoint.weights_hash and checkpoint.weights_hash != weights_hash:
        raise UserError(
            f"Checkpoint {where} was trained on the backbone weights {checkpoint.weights_hash[:12]} but "
            f"{weights_hash[:12]} are here; use the weights of the run ({checkpoint.config.model.weights})."
        )


def crf_refinement() -> Refine:
    """Return the dense CRF as `evaluate` and `segment` want it."""
    from common.crf import refine

    return refine


def apply_protocol(model: config.Model, protocol: Protocol) -> tuple[config.Model, Upsample, ScoreAt]:
    """Return backbone settings, order of enlarging, and where to score."""
    if protocol == "label-size":
        return model, "cosines", "label"
    if protocol != "center-320":
        raise UserError(f"Protocol {protocol!r} is unknown; expected label-size or center-320.")
    changes = {"height": 320, "width": 320, "crop": "center", "resize": "nearest"}
    return model.model_copy(update=changes), "code", "input"
