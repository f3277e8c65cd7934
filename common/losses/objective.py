"""Which objective does a run train with?"""

from __future__ import annotations

from common import config
from common.losses.base import Objective
from common.losses.correspondence import Correspondence


def build_objective(settings: config.RunConfig, channels: int) -> Objective:
    """Build the objective that the settings name; its starting state follows from the seed alone."""
    if settings.loss.objective == "correspondence":
        return Correspondence(settings.loss)
    raise NotImplementedError(settings.loss.objective)
