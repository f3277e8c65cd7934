"""Which settings would act on nothing, because the sites do not share what they are for? Of all tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common.config import RunConfig


def sharing_conflict(config: RunConfig) -> str | None:
    """Return what merges heads or networks where every site keeps its own, in one sentence, or None."""
    share, aggregation = config.centroids.share, config.aggregation
    if share in ("both", "head"):
        return None
    merging = (("rule", aggregation.rule, "mean"), ("optimizer", aggregation.optimizer, "none"))
    for key, value, off in merging:
        if value != off:
            return (
                f"aggregation.{key} is '{value}' but centroids.share is '{share}', where every site keeps what it "
                f"trains; set aggregation.{key} to '{off}', or centroids.share to 'both'"
            )
    return None
