"""What do the scores of sites' own models say together, without being taken for one model's?"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

ClassIou = Mapping[str, float | None]


def class_means(sites: Iterable[ClassIou]) -> dict[str, float | None]:
    """Return the mean IoU of every class over the sites whose labels show it; None where none do."""
    records = list(sites)
    names = dict.fromkeys(name for record in records for name in record)
    found = {name: [v for record in records if (v := record.get(name)) is not None] for name in names}
    return {name: statistics.mean(values) if values else None for name, values in found.items()}


def site_fields(
    miou: Mapping[str, float], accuracy: Mapping[str, float], classes: Mapping[str, ClassIou]
) -> dict[str, Any]:
    """Return the fields of a record for scores by site, at least one, as fractions.

    Their names begin with ``site_``: a mean over models is never the mIoU of a model.
    """
    return {
        "site_miou": dict(miou),
        "site_miou_mean": statistics.mean(miou.values()),
        "site_miou_std": statistics.pstdev(miou.values()),
        "site_accuracy": dict(accuracy),
        "site_accuracy_mean": statistics.mean(accuracy.values()),
        "site_per_class_iou": class_means(classes.values()),
    }
