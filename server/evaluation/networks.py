"""How good is a checkpoint of a whole network on any labelled shard?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common.checkpoint import Checkpoint
from common.data.classes import ClassTable
from common.data.manifest import Shard
from common.errors import UserError
from common.evaluation.networks import count_agreement
from common.evaluation.overlay import Bytes
from common.evaluation.score import scored
from server.evaluation.network_scorer import set_fields
from server.inference.base import Cluster, need_classes
from server.inference.networks import NetworkPredictor


def evaluate_network_checkpoint(
    saved: Checkpoint,
    where: str,
    shard: Shard,
    *,
    crf: bool = False,
    flip: bool = False,
    cluster: Cluster = "auto",
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Return the quality fields of a network's record: one confusion, nothing matched.

    Beside the fields that every checkpoint has stand accuracy and precision by class, those of known domains and
    sites (``domain_miou*`` and ``site_miou*``, where there are several) and ``cluster``: which network segmented, with
    ``cluster_images`` where style decided.

    Raises:
        UserError: an image without a label, another class table, a cluster that the run does not have.
    """
    table = shared_classes(saved, where, shard)
    predictor = NetworkPredictor(saved, where, device, cluster)

    def predict(_: int, image: Bytes) -> Bytes:
        return predictor.labels(image, flip=flip, crf=crf)

    found = count_agreement(predict, shard, table, progress=progress)
    fields = set_fields(found, table)
    score = scored(found.confusion, table, "identity")
    record = {
        "images": found.num_images,
        "labelled_images": found.num_images,
        "pixels": found.confusion.total,
        "accuracy": score.accuracy,
        "miou": score.miou,
        "miou_all": score.miou_all,
        "per_class_iou": score.per_class_iou,
        "confusion": score.confusion,
        "mapping": score.mapping,
        "matching": "identity",
        "classes": list(table.names),
        "mean_cosine": None,
        "cluster_share": None,
        "entropy": None,
        "weights_sha256": saved.weights_hash,
        "cluster": predictor.choice,
    }
    if predictor.choice == "nearest":
        record["cluster_images"] = {str(k): n for k, n in sorted(predictor.images.items())}
    return record | {key: value for key, value in fields.items() if key not in record}


def shared_classes(saved: Checkpoint, where: str, shard: Shard) -> ClassTable:
    """Return the table that reads the shard's labels: its own, or the checkpoint's where it has none.

    Raises `UserError` unless every image has a label and the classes are those of the network, in its order.
    """
    if not shard.labelled:
        raise UserError(f"{shard.path} names images without labels; a network is scored with all of them.")
    own = need_classes(saved, where)
    table = shard.classes or own
    if table.names != own.names:
        raise UserError(
            f"{shard.path} has the {table.num_classes} classes of {table.name!r} but {where} those of {own.name!r} "
            f"({own.num_classes}); name a table that reads these labels as the same classes (--classes)."
        )
    return table


def refuse_matching(saved: Checkpoint, where: str, matching: str | None, protocol: str) -> None:
    """Raise `UserError` for ways of scoring that only clusters without names need."""
    reason = f"{where} holds a network that was trained with named classes (task '{saved.config.task}')"
    if matching not in (None, "checkpoint"):
        raise UserError(f"--matching {matching} was given, but {reason}; leave it out.")
    if protocol != "label-size":
        raise UserError(f"--protocol {protocol} was given, but {reason}; it is scored at label-size.")


def network_lines(record: dict[str, Any]) -> list[str]:
    """Return what a terminal shows of a network beside the usual lines."""
    lines = []
    if record.get("cluster") == "nearest":
        shares = ", ".join(f"{k}: {n} images" for k, n in record["cluster_images"].items())
        lines.append(f"  each image by the network of the nearest style cluster ({shares})")
    elif record.get("cluster") != "global":
        lines.append(f"  all images by the network of style cluster {record['cluster']}")
    for kind in ("domain", "site"):
        each = {name: value for name, value in record.get(f"{kind}_miou", {}).items() if value is not None}
        if each:
            mean, spread = 100 * record[f"{kind}_miou_mean"], 100 * record[f"{kind}_miou_std"]
            lines.append(f"  mIoU by {kind}: mean {mean:.1f} %, deviation {spread:.1f} %")
            width = max(map(len, each))
            lines += [f"    {name:<{width}}  {100 * value:5.1f} %" for name, value in each.items()]
    return lines
