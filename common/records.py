"""The line of ``metrics.jsonl`` that every round leaves: one model for who writes it and who reads it.

A field that a line does not hold stays unset and is not written. Qualities are fractions. Fields that a later release
adds are kept. The order of fields is that of the file.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

ByName = dict[str, float | None]
"""A figure by class, site or domain; None where there was nothing to count."""


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
        confusion: pixels, clusters [K] by classes [C]. mapping: class of each cluster, -1 for none.
        site_miou: of sites that keep models of their own; ``site_*_mean`` is never a model's score.
        quarantined: why a site's reply was left out. counted: whether enough sites answered.
        bytes_up, bytes_down: payload by site.
        epsilon: privacy loss so far; None beside a ``delta`` says that there is no bound.
    """

    round: int
    split: str | None = None
    accuracy: float | None = None
    miou: float | None = None
    miou_all: float | None = None
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
    epsilon: float | None = None
    delta: float | None = None
    checkpoint_sha256: str | None = None
