"""Which objective does a run train with?"""

from __future__ import annotations

from common.losses.base import Objective
from common.losses.correspondence import Correspondence
from common.losses.extra_terms import WithExtras
from common.losses.modularity import Modularity
from common.losses.smoothness import Smoothness
from common.settings.schema import RunConfig


def build_objective(settings: RunConfig, channels: int) -> Objective:
    """Build the objective that the settings name; its starting state follows from the seed alone.

    Raises ValueError for an objective that is fitted from sums in closed form and has nothing to train
    by steps.
    """
    loss = settings.loss
    main: Objective
    if loss.objective == "correspondence":
        main = Correspondence(loss)
    elif loss.objective == "smoothness":
        main = Smoothness(settings)
    elif loss.objective == "modularity":
        main = Modularity(settings, channels)
    else:
        raise ValueError(f"Objective '{loss.objective}' is fitted from sums; it does not train by steps.")
    extras = loss.reconstruction_weight or loss.augmentation_weight or loss.crf_weight
    return WithExtras(main, settings, channels) if extras else main
