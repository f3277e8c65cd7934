"""The command that scores a checkpoint on any labelled shard, and its lines for a terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.checkpoint import load_checkpoint
from common.data.classes import load_table
from common.data.manifest import read_shard
from common.data.readable import readable_part
from common.evaluation.clusters import EvalProtocol, Matching
from common.system.atomic import atomic_write_text
from server.evaluation.scorer import EVERY_SITE, Scoring
from server.inference.base import Cluster
from server.tasks.base import task_of


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
    protocol: EvalProtocol = "label-size",
    cluster: Cluster = "auto",
    site: str | None = None,
    skip_unreadable: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score a checkpoint on a shard and return (and write) the record of ``evaluate --json``.

    Args:
        checkpoint: a ``round-NNNN.safetensors`` file or a run directory (its newest round).
        shard: manifest; a ``partition.json`` beside it names root and classes.
        data_root: where the manifest's paths start, if not as recorded.
        classes: name or JSON file of the class table, if not as recorded.
        crf: refine with the dense CRF.
        flip: average codes (of a whole network: probabilities) with those of the mirrored image.
        json_path: where the record goes; written in one step, at the end.
        matching: "checkpoint" uses the names that clusters got while training, so that these labels are
            only scored against, not matched on. By default as the run's settings say.
        protocol: "center-320" is the reference evaluation: shorter side to 320 by nearest neighbour,
            central 320 x 320, codes enlarged before they are compared. Scores are then on that square only.
        cluster: which network of a run with style clusters (see `server.inference.base.Cluster`).
        site: whose own model, of a run whose sites do not share all; "all" scores each of them by itself and tells
            their means as ``site_miou_mean`` and so on, never as ``miou``.
        skip_unreadable: leave out images that cannot be used, and name them under ``left_out``.

    Clusters without any label get quality fields of None, and the label-free figures stand alone. A whole network
    needs a label for every image, and nothing is matched.

    Raises:
        UserError: checkpoint, shard, class table or weights do not fit together, or a site is missing or unknown.
    """
    started = time.monotonic()
    saved = load_checkpoint(checkpoint)
    table = load_table(classes) if classes is not None else None
    images = read_shard(shard, data_root, table)
    left_out: list[str] = []
    if skip_unreadable:
        images, left_out = readable_part(images, progress)
    where = str(checkpoint)
    how = Scoring(crf, flip, matching, protocol, cluster, site, progress)
    found = task_of(saved.config).evaluate(saved, where, images, how)
    record = {
        "checkpoint": where,
        "round": saved.round,
        "run": saved.config.name,
        "seed": saved.config.seed,
        "split": images.name,
        "site": site,
        **found,
        "protocol": protocol,
        "crf": crf,
        "flip": flip,
        "seconds": round(time.monotonic() - started, 3),
        **({"left_out": left_out} if skip_unreadable else {}),
    }
    if json_path is not None:
        atomic_write_text(json_path, json.dumps(record, indent=2) + "\n")
    return record


def evaluation_text(record: dict[str, Any]) -> str:
    """Return a record as lines for a terminal."""
    lines = [f"{record['run']}, seed {record['seed']}, round {record['round']} on {record['split']}"]
    lines[0] += f": {record['images']} images"
    if record["site"] not in (None, EVERY_SITE):
        lines[0] += f", the model of {record['site']}"
    if record["miou"] is not None:
        lines.append(
            f"  mIoU {100 * record['miou']:6.1f} %   (all classes: {100 * record['miou_all']:.1f} %)"
        )
        lines.append(f"  accuracy {100 * record['accuracy']:.1f} %   matching: {record['matching']}")
        lines[-1] += f"   protocol: {protocol_text(record)}"
        if record.get("published_miou") is not None:
            miou, accuracy = 100 * record["published_miou"], 100 * record["published_accuracy"]
            lines.append(f"  by the published conventions: mIoU {miou:.1f} %   accuracy {accuracy:.1f} %")
        if "mean_accuracy" in record:
            lines.append(
                f"  accuracy of classes, mean {100 * record['mean_accuracy']:.1f} %   IoU weighed by frequency "
                f"{100 * record['fw_iou']:.1f} %"
            )
        lines += class_lines(
            record["per_class_iou"], record.get("per_class_accuracy"), record.get("per_class_precision")
        )
    if "site_per_class_iou" in record:  # models of sites; a whole network's record has its scores by site
        lines += site_lines(record)
    if record["mean_cosine"] is not None:
        compact, even = record["mean_cosine"], record["entropy"]
        lines.append(f"  mean cosine to the centroid {compact:.3f}, evenness {even:.3f}")
    if "cluster" in record:
        lines += network_lines(record)
    lines += [f"  left out: {sentence}" for sentence in record.get("left_out", ())]
    return "\n".join(lines)


def protocol_text(record: Mapping[str, Any]) -> str:
    """Return how a record was scored, for example ``center-320 + crf + flip``."""
    return " + ".join([record["protocol"], *(name for name in ("crf", "flip") if record[name])])


def site_lines(record: Mapping[str, Any]) -> list[str]:
    """Return what a terminal shows of sites' own models: their mean, each of them, and the mean of every class."""
    scores = record["site_miou"]
    mean, spread = 100 * record["site_miou_mean"], 100 * record["site_miou_std"]
    width = max(len(name) for name in scores)
    return [
        f"  mIoU of {len(scores)} sites' own models: mean {mean:.1f} %, deviation {spread:.1f} %",
        *(f"    {name:<{width}}  {100 * value:5.1f} %" for name, value in scores.items()),
        f"  accuracy: mean {100 * record['site_accuracy_mean']:.1f} %   matching: {record['matching']}, each by itself",
        "  IoU by class, mean over these models:",
        *class_lines(record["site_per_class_iou"]),
    ]


def class_lines(
    per_class_iou: Mapping[str, float | None],
    accuracy: Mapping[str, float | None] | None = None,
    precision: Mapping[str, float | None] | None = None,
) -> list[str]:
    """Return one line per class with its IoU, and below a head with accuracy (recall) and precision if given."""
    width = max(len(name) for name in per_class_iou)
    beside = [one for one in (accuracy, precision) if one is not None]
    lines = []
    if beside:
        lines.append(f"  {'':<{width}}  {'IoU':>7}  {'accuracy':>9}  {'precision':>9}")
    for name, value in per_class_iou.items():
        if value is None:
            lines.append(f"  {name:<{width}}    not in the labels")
            continue
        more = "".join(f"  {_percent(one[name]):>9}" for one in beside)
        lines.append(f"  {name:<{width}}  {100 * value:5.1f} %{more}")
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


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
