"""Scores of a confusion matrix (accuracy, mIoU, IoU by class) and the line of ``metrics.jsonl`` that they fill.

One model of the line for who writes it and who reads it. A field that a line does not hold stays unset and is not
written. Qualities are fractions. Fields that a later release adds are kept. The order of fields is that of the file.
"""

from __future__ import annotations

import json
import statistics
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from common.data.classes import ClassTable
from common.errors import UserError
from common.evaluation.metrics import Confusion, MatchRule, match, published_scores, rates, scores

# A figure by class, site or domain; None where there was nothing to count.
ByName = dict[str, float | None]


class _Record(BaseModel):
    model_config = ConfigDict(extra="allow")  # a report of today reads runs of a later release

    def to_json(self) -> dict[str, Any]:
        """Return the fields that were set, in the order of the file."""
        return self.model_dump(exclude_unset=True)


class SetRecord(_Record):
    """Scores on one test set. ``cluster_``: each image by the network of the style cluster nearest to it."""

    accuracy: float | None = None
    miou: float | None = None
    per_class_iou: ByName | None = None
    images: int | None = None
    mean_accuracy: float | None = None
    fw_iou: float | None = None
    per_class_accuracy: ByName | None = None
    per_class_precision: ByName | None = None
    domain_miou: ByName | None = None
    domain_miou_mean: float | None = None
    domain_miou_std: float | None = None
    site_miou: ByName | None = None
    site_miou_mean: float | None = None
    site_miou_std: float | None = None
    cluster_miou: float | None = None
    cluster_per_class_iou: ByName | None = None
    cluster_domain_miou: ByName | None = None
    cluster_domain_miou_mean: float | None = None
    cluster_domain_miou_std: float | None = None
    cluster_site_miou: ByName | None = None
    cluster_site_miou_mean: float | None = None
    cluster_site_miou_std: float | None = None


class RoundRecord(_Record):
    """One round.

    Attributes:
        split: evaluation shard, or several, joined by commas.
        miou: of the one shared model; of several ``sets`` the first one's. None where nothing was scored.
        published_miou, published_accuracy: by the conventions of published code (`eval.published`).
        confusion: pixels, clusters [K] by classes [C]. mapping: class of each cluster, -1 for none.
        site_miou: of sites that keep models of their own; ``site_*_mean`` is never a model's score.
        quarantined: why a site's reply was left out. counted: whether enough sites answered.
        bytes_up, bytes_down: payload by site.
        seconds: of the round. site_seconds: by site, waiting for data, forward, backward, other work, and network.
        epsilon: privacy loss so far; None beside a ``delta`` says that there is no bound.
    """

    round: int
    split: str | None = None
    accuracy: float | None = None
    miou: float | None = None
    miou_all: float | None = None
    published_accuracy: float | None = None
    published_miou: float | None = None
    per_class_iou: ByName | None = None
    confusion: list[list[int]] | None = None
    mapping: list[int] | None = None
    entropy: float | None = None
    sets: dict[str, SetRecord] = {}
    cluster_share: list[float] | None = None
    site_miou: dict[str, float] = {}
    site_miou_mean: float | None = None
    site_miou_std: float | None = None
    site_accuracy: dict[str, float] = {}
    site_accuracy_mean: float | None = None
    site_per_class_iou: ByName = {}
    loss: float | None = None
    mean_cosine: float | None = None
    displacement: float | None = None
    kept: float | None = None
    sites: list[str] = []
    quarantined: dict[str, str] = {}
    counted: bool = True  # absent of round 0, which asks no site
    bytes_up: dict[str, int] = {}
    bytes_down: dict[str, int] = {}
    seconds: float = 0.0
    site_seconds: dict[str, dict[str, float]] = {}
    scoring_seconds: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    checkpoint_sha256: str | None = None


_SUM = "crc32"


def sealed_line(line: dict[str, Any]) -> str:
    """Return a line of ``metrics.jsonl`` with the CRC-32 of what it says, and its end."""
    text = json.dumps(line)
    return f'{text[:-1]}, "{_SUM}": "{zlib.crc32(text.encode()):08x}"}}\n'


def unsealed_line(text: str, sealed: bool = False) -> dict[str, Any]:
    """Return what a line says, without its checksum; raises ValueError where it has changed since it was written.

    Lines of earlier releases have no checksum; ``sealed`` says that this one must have one.
    """
    line = json.loads(text)
    if not isinstance(line, dict) or type(line.get("round")) is not int:
        raise ValueError("it is no record with a round")
    expected = line.pop(_SUM, None)
    if sealed and expected is None:
        raise ValueError("it has lost its checksum")
    if expected is not None and expected != f"{zlib.crc32(json.dumps(line).encode()):08x}":
        raise ValueError("it does not match its checksum")
    return line


ClassIou = Mapping[str, float | None]


@dataclass
class Score:
    """What scoring found; empty where nothing was scored. All qualities are fractions.

    Where sites keep models of their own there is no common model to score: ``sites`` holds the
    fields of each of theirs, which are never presented as those of a model.
    """

    accuracy: float | None = None
    miou: float | None = None
    miou_all: float | None = None
    per_class_iou: dict[str, float | None] | None = None
    mapping: list[int] | None = None
    confusion: list[list[int]] | None = None
    mean_cosine: float | None = None
    cluster_share: list[float] | None = None
    entropy: float | None = None
    published: dict[str, float] = field(default_factory=dict)
    sites: dict[str, dict[str, Any]] = field(default_factory=dict)
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add_site(self, name: str, one: Score) -> None:
        """Take in the score of one site's model, where there were labels to score it by."""
        if one.miou is not None and one.accuracy is not None:
            self.sites[name] = one.fields()

    def fields(self) -> dict[str, Any]:
        """Return the quality fields of a metrics line."""
        # these four stand in every scored line, the others where they mean something
        found: dict[str, Any] = {
            "accuracy": self.accuracy,
            "miou": self.miou,
            "miou_all": self.miou_all,
            "per_class_iou": self.per_class_iou,
        }
        rest = {"confusion": self.confusion, "mapping": self.mapping, "entropy": self.entropy}
        found |= {key: value for key, value in rest.items() if value is not None} | self.published
        if self.sets:
            found["sets"] = self.sets
        if self.cluster_share is not None:
            found["cluster_share"] = self.cluster_share
        if self.sites:
            found |= site_fields(self.sites)
        return found

    def progress(self) -> list[str]:
        """Return what a progress line says."""
        if len(self.sets) > 1 or any("cluster_miou" in record for record in self.sets.values()):
            return [word for name, record in self.sets.items() for word in _set_words(name, record)]
        if self.miou is not None:
            words = [f"mIoU {self.miou:.3f}", f"accuracy {self.accuracy:.3f}"]
            return [
                *words,
                *(f"as published {value:.3f}" for key, value in self.published.items() if "miou" in key),
            ]
        if self.sites:
            values = [record["miou"] for record in self.sites.values()]
            mean, spread = statistics.mean(values), statistics.pstdev(values)
            return [f"mIoU of the sites' own models {mean:.3f} +- {spread:.3f}"]
        return [] if self.mean_cosine is None else [f"mean cosine {self.mean_cosine:.3f}"]


def _set_words(name: str, record: Mapping[str, Any]) -> list[str]:
    """Return what a progress line says of one test set."""
    if record["miou"] is None:
        return [f"{name} has no labelled pixel"]
    words = f"{name} mIoU {record['miou']:.3f}"
    return [words + (f" (clusters {record['cluster_miou']:.3f})" if "cluster_miou" in record else "")]


def scored(confusion: Confusion, classes: ClassTable, how: MatchRule, published: bool = False) -> Score:
    """Match clusters to classes once, on the summed counts, and score; without any count there is no score.

    With ``published`` the figures by the published conventions stand beside ours.
    """
    if not confusion.total:
        return Score()
    mapping = match(confusion, how)  # once, on all counts: a mean of scores would match each part anew
    found = scores(confusion, mapping)
    return Score(
        accuracy=found.accuracy,
        miou=found.miou,
        miou_all=found.miou_all,
        per_class_iou=dict(zip(classes.names, found.per_class_iou, strict=True)),
        mapping=[int(c) for c in mapping],
        confusion=confusion.to_list(),
        published=published_scores(confusion, mapping) if published else {},
    )


def quality(
    confusion: Confusion | None,
    classes: ClassTable | None,
    how: Literal[MatchRule, "checkpoint"],
    known_mapping: list[int] | None = None,
) -> dict[str, Any]:
    """Return the quality fields of a record: matched once on the summed counts; all None without labels.

    ``known_mapping`` is that of the checkpoint. Clusters are scored by the published conventions as well. Raises
    `UserError` where that mapping is asked for but of other classes.
    """
    of_labels = ("pixels", "accuracy", "miou", "miou_all", "per_class_iou", "confusion", "matching")
    record: dict[str, Any] = dict.fromkeys(of_labels) | {
        "mapping": known_mapping,
        "classes": None if classes is None else list(classes.names),
    }
    if confusion is None or classes is None or (how == "identity" and not confusion.total):
        return record
    if how == "checkpoint":
        mapping = np.asarray(known_mapping, dtype=np.int64)
        highest = int(mapping.max())
        if highest >= classes.num_classes:
            raise UserError(
                f"The checkpoint's clusters stand for {highest + 1} classes but the shard has "
                f"{classes.num_classes} ({classes.name}); match on this shard instead: hungarian."
            )
    else:
        mapping = match(confusion, how)
    record |= scores(confusion, mapping).to_dict(classes.names) | rates(confusion, mapping, classes.names)
    if how != "identity":
        record |= published_scores(confusion, mapping)
    return record | {"confusion": confusion.to_list(), "matching": how}


def class_means(sites: Iterable[ClassIou]) -> dict[str, float | None]:
    """Return the mean IoU of every class over the sites whose labels show it; None where none do."""
    records = list(sites)
    names = dict.fromkeys(name for record in records for name in record)
    found = {name: [v for record in records if (v := record.get(name)) is not None] for name in names}
    return {name: statistics.mean(values) if values else None for name, values in found.items()}


def site_fields(sites: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of a record for the scores of sites by name, at least one, as fractions.

    Their names begin with ``site_``: a mean over models is never the mIoU of a model.
    """
    miou = {name: record["miou"] for name, record in sites.items()}
    accuracy = {name: record["accuracy"] for name, record in sites.items()}
    return {
        "site_miou": miou,
        "site_miou_mean": statistics.mean(miou.values()),
        "site_miou_std": statistics.pstdev(miou.values()),
        "site_accuracy": accuracy,
        "site_accuracy_mean": statistics.mean(accuracy.values()),
        "site_per_class_iou": class_means(record["per_class_iou"] or {} for record in sites.values()),
    }
