"""Loads the predictor that a checkpoint calls for."""

from __future__ import annotations

from common.checkpoint import Checkpoint
from server.inference.base import Cluster, Predictor
from server.tasks.registry import task_of


def load_predictor(
    saved: Checkpoint, where: str, device: str = "auto", cluster: Cluster = "auto", site: str | None = None
) -> Predictor:
    """Return what segments images as a checkpoint says.

    Args:
        saved: the checkpoint.
        where: its path, for messages.
        device: "auto", "cpu" or "cuda".
        cluster: see `Cluster`.
        site: whose own model, of a run whose sites do not share all (see `common.models.site_models`).

    Raises:
        UserError: weights that do not fit, a cluster or a site that the run does not have, or a site that is missing.
    """
    return task_of(saved.config).predictor(saved, where, device, cluster, site)
