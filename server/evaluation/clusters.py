"""How good is a model of frozen features and centroids on any labelled shard?"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.checkpoint import Checkpoint
from common.data.classes import ClassTable
from common.data.manifest import Shard
from common.errors import UserError
from common.evaluation.clusters import Evaluation, evaluate, mirrored_features
from common.evaluation.metrics import match, rates, scores
from common.evaluation.protocol import Matching, Protocol, apply_protocol, check_backbone, crf_refinement
from common.evaluation.score import site_fields
from common.features.cache import open_features
from common.models.segmenter import Segmenter
from common.models.site_models import chosen_model, own_sites
from common.system.device import choose_device


def evaluate_clusters(
    saved: Checkpoint,
    where: str,
    pictures: Shard,
    *,
    crf: bool = False,
    flip: bool = False,
    matching: Matching | None = None,
    protocol: Protocol = "label-size",
    cache_dir: str | Path | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Return the quality fields of a record; ``where`` is the checkpoint's path, for messages.

    The others are those of `evaluate_command.evaluate_checkpoint`, and so are the errors.
    """
    how = matching or saved.config.eval.matching
    if how == "checkpoint" and saved.mapping is None:
        raise UserError(
            f"Checkpoint {where} names no classes (it was never scored); match on this shard: hungarian."
        )
    model, upsample, score_at = apply_protocol(saved.config.model, protocol)
    folder = Path(cache_dir) if cache_dir is not None else pictures.path.parent / "cache"
    chosen = choose_device(device)
    features = open_features(
        pictures, model, saved.config.cache, folder, device=chosen, seed=saved.config.seed, progress=progress
    )
    check_backbone(saved, features.weights_hash, features.channels, where)
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
    return quality(found, pictures.classes, how, saved.mapping) | {"weights_sha256": features.weights_hash}


def evaluate_own_models(saved: Checkpoint, where: str, pictures: Shard, **options: Any) -> dict[str, Any]:
    """Score the model of every site by itself and return what they say together (see `site_scores`).

    Options are those of `evaluate_clusters`. What only one model has (``miou``, a confusion, names of clusters) is
    None; ``mean_cosine`` and ``entropy`` are means over sites.
    """
    found = {
        name: evaluate_clusters(chosen_model(saved, where, name), where, pictures, **options)
        for name in own_sites(saved)
    }
    records = list(found.values())
    of_one = ("accuracy", "miou", "miou_all", "per_class_iou", "confusion", "mapping", "cluster_share")
    together = records[0] | dict.fromkeys(of_one)
    for key in ("mean_cosine", "entropy"):
        together[key] = statistics.mean(record[key] for record in records)
    scored = {name: record for name, record in found.items() if record["miou"] is not None}
    if not scored:
        return together
    by_key = {
        key: {name: record[key] for name, record in scored.items()}
        for key in ("miou", "accuracy", "per_class_iou")
    }
    return together | site_fields(by_key["miou"], by_key["accuracy"], by_key["per_class_iou"])


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
    scored |= rates(found.confusion, mapping).to_dict(classes.names)
    return record | scored | {"confusion": found.confusion.to_list(), "matching": how}
