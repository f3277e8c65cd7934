"""Chosen objective: the one that the settings name, made ready for steps or for sums."""

from __future__ import annotations

from common.losses.base import TRAIN, ClosedForm, Objective
from common.losses.extra_terms import WithExtras
from common.settings.objectives import OBJECTIVES
from common.settings.schema import RunConfig


def objective_class(config: RunConfig) -> type[Objective] | type[ClosedForm]:
    """Return the class that the settings name."""
    found: type[Objective] | type[ClosedForm] = OBJECTIVES.get(config.loss.objective)
    return found


def build_objective(config: RunConfig, channels: int) -> Objective:
    """Build an objective that takes steps, with its extra terms; its starting state follows from the seed alone.

    Raises ValueError for one in closed form, which has nothing to train.
    """
    kind = objective_class(config)
    if not issubclass(kind, Objective):
        raise ValueError(
            f"Objective '{config.loss.objective}' is fitted from sums; it does not train by steps."
        )
    main = kind(config, channels)
    loss = config.loss
    extras = loss.reconstruction_weight or loss.augmentation_weight or loss.crf_weight
    return WithExtras(main, config, channels) if extras else main


def closed_form(config: RunConfig) -> ClosedForm | None:
    """Return the objective if it is solved from sums, None if it takes steps."""
    kind = objective_class(config)
    return kind(config) if issubclass(kind, ClosedForm) else None


def round_kind(config: RunConfig, number: int) -> str:
    """Return what the sites do in a round, counted from 1: steps, k-means, or the sums of a closed form."""
    closed = closed_form(config)
    return TRAIN if closed is None else closed.round_kind(number)


def clipping_bound(config: RunConfig) -> float:
    """Return the largest norm of what the objective sends of a site's, or an image's, own; noise goes by it."""
    return float(getattr(config.privacy, config.loss.facts.clips[0]))


def sums_form(group: str) -> type[ClosedForm] | None:
    """Return the closed form whose sums travel under this name, or None for groups of other kinds."""
    return next((e.value for e in OBJECTIVES.entries() if not e.facts.steps and e.value.kind == group), None)
