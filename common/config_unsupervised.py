"""Which settings of task `unsupervised` do not go together, or would be ignored in silence?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common.config import RunConfig


def unsupervised_conflict(config: RunConfig) -> str | None:
    """Return why these settings do not go together, in one sentence, or None."""
    if config.task != "unsupervised":
        return None
    spectral = config.loss.objective == "spectral"
    return (
        (_spectral_conflict(config) if spectral else None)
        or _keeper_conflict(config)
        or _draw_conflict(config)
    )


def _spectral_conflict(config: RunConfig) -> str | None:
    """Name what the closed form, which takes no step and averages no head, has no use or no room for."""
    model, centroids = config.model, config.centroids
    if model.nonlinear:
        return (
            "loss.objective 'spectral' finds a linear head but model.nonlinear is true; set it to false, or choose "
            "another objective"
        )
    if centroids.merge != "lloyd":
        return (
            f"loss.objective 'spectral' needs centroids.merge 'lloyd', not '{centroids.merge}'; its sites send sums, "
            "not centroids of their own"
        )
    if model.clusters > 2 * model.dim**2:
        return (
            f"loss.objective 'spectral' starts k-means from {2 * model.dim**2} directions of codes of length "
            f"{model.dim} but model.clusters is {model.clusters}; raise model.dim"
        )
    if config.rounds < 2:
        return "loss.objective 'spectral' needs 2 rounds (projection, k-means), rounds is 1; raise it"
    for key, value, off in _steps_only(config):
        if value != off:
            return (
                f"{key} is {_shown(value)}, but loss.objective 'spectral' solves for the head from sums: it takes no "
                f"step and averages no head; set it to {_shown(off)}, or choose another objective"
            )
    return None


def _steps_only(config: RunConfig) -> list[tuple[str, object, object]]:
    """Return (key, value, value that is off) of what acts on gradient steps, or on trained heads, alone."""
    local, loss, aggregation = config.local, config.loss, config.aggregation
    weights: Mapping[str, float] = {
        "local.prox-mu": local.prox_mu,
        "local.moon-weight": local.moon_weight,
        "loss.reconstruction-weight": loss.reconstruction_weight,
        "loss.augmentation-weight": loss.augmentation_weight,
        "loss.crf-weight": loss.crf_weight,
    }
    return [
        *((key, weight, 0.0) for key, weight in weights.items()),
        ("aggregation.rule", aggregation.rule, "mean"),
        ("aggregation.optimizer", aggregation.optimizer, "none"),
    ]


def _keeper_conflict(config: RunConfig) -> str | None:
    """Name what leaves ``keep-least-moved`` without a site to pick."""
    if not config.aggregation.keep_least_moved:
        return None
    if config.centroids.merge == "lloyd":
        return (
            "aggregation.keep-least-moved goes by how far sites move the centroids, but with centroids.merge 'lloyd' "
            "none moves them; set it to false, or choose another rule"
        )
    if config.centroids.share != "both":
        return (
            "aggregation.keep-least-moved lets one site keep its model while the others share theirs, but "
            f"centroids.share is '{config.centroids.share}'; set it to false, or share both"
        )
    return None


def _draw_conflict(config: RunConfig) -> str | None:
    """Name the setting of the published method that has nothing to act on."""
    loss, local = config.loss, config.local
    corresponds = loss.objective == "correspondence"
    if loss.negative_draw == "published" and not (corresponds and loss.negative_weight):
        return (
            "loss.negative-draw is 'published' but there is no negative term of objective 'correspondence'; "
            "set it to 'derangement'"
        )
    if local.neighbour_dropout and not (corresponds and loss.inter_weight):
        return (
            f"local.neighbour-dropout is {local.neighbour_dropout:g} but no neighbours are searched without "
            "the inter term of objective 'correspondence'; set it to 0"
        )
    if local.prox_mu and local.prox_parameters == "nonlinear" and not config.model.nonlinear:
        return (
            f"local.prox-mu is {local.prox_mu:g} for the two-layer branch (local.prox-parameters) but "
            "model.nonlinear is false; set local.prox-parameters to 'all'"
        )
    return None


def _shown(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else f"{value:g}"
