"""Which objective does a run train with?"""

from __future__ import annotations

from common import config
from common.losses.base import Objective
from common.losses.correspondence import Correspondence
from common.losses.extra_terms import WithExtras
from common.losses.modularity import Modularity
from common.losses.smoothness import Smoothness


def build_objective(settings: config.RunConfig, channels: int) -> Objective:
    """Build the objective that the settings name; its starting state follows from the seed alone."""
    loss = settings.loss
    main: Objective
    if loss.objective == "correspondence":
        main = Correspondence(loss)
    elif loss.objective == "smoothness":
        main = Smoothness(settings)
    else:
        main = Modularity(settings, channels)
    extras = loss.reconstruction_weight or loss.augmentation_weight or loss.crf_weight
    return WithExtras(main, settings, channels) if extras else main
