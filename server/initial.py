"""Where does a run start?"""

from __future__ import annotations

from common.config import RunConfig
from common.losses.objective import build_objective
from common.models.head import build_head, init_centroids, state_to_numpy
from server.model_state import ModelState


def initial_state(config: RunConfig, channels: int) -> ModelState:
    """Return the head, the centroids [K, D] and the objective's shared arrays that follow from the seed alone.

    ``channels`` is the length of the backbone's features, as the sites report it.
    """
    spectral = config.loss.objective == "spectral"  # has no steps, hence nothing to share beside the head
    return ModelState(
        head=state_to_numpy(build_head(channels, config.model, config.seed)),
        centroids=init_centroids(config.model.clusters, config.model.dim, config.seed),
        shared={} if spectral else state_to_numpy(build_objective(config, channels)),
    )
