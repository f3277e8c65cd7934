"""Loads the predictor that a checkpoint calls for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.checkpoint import Checkpoint
from common.models.site_models import chosen_model, refuse_site
from server.inference.base import Cluster, Predictor, refuse_cluster
from server.inference.clusters import ClusterPredictor

if TYPE_CHECKING:
    pass


def load_predictor(
    saved: Checkpoint, where: str, device: str = "auto", cluster: Cluster = "auto", site: str | None = None
) -> Predictor:
    """Return what segments pictures as a checkpoint says.

    Args:
        saved: the checkpoint.
        where: its path, for messages.
        device: "auto", "cpu" or "cuda".
        cluster: see `Cluster`.
        site: whose own model, of a run whose sites do not share all (see `common.models.site_models`).

    Raises:
        UserError: weights that do not fit, a cluster or a site that the run does not have, or a site that is missing.
    """
    if saved.config.task == "unsupervised":
        refuse_cluster(saved, where, cluster)
        return ClusterPredictor(chosen_model(saved, where, site), where, device)
    refuse_site(saved, where, site)
    from server.inference.networks import NetworkPredictor

    return NetworkPredictor(saved, where, device, cluster)
