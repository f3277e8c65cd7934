"""Conflicts of settings: which do not go together, or would be ignored in silence."""

from __future__ import annotations

from collections.abc import Mapping

from common.settings.objectives import OBJECTIVES
from common.settings.schema import RunConfig
from common.settings.section import kebab


def conflict_of(config: RunConfig) -> str | None:
    """Return the first conflict of a run's settings, in one sentence without its full stop, or None."""
    if config.loss.augmentation_weight and not config.cache.views:
        return (
            f"loss.augmentation-weight is {config.loss.augmentation_weight:g} but cache.views is 0; "
            "set cache.views to 1 or more, so that there are augmented views to agree with"
        )
    if config.sites.per_round and config.sites.minimum > config.sites.per_round:
        return (
            f"sites.minimum is {config.sites.minimum} but sites.per-round is {config.sites.per_round}; "
            "a round could never count, so lower sites.minimum or raise sites.per-round"
        )
    if conflict := privacy_conflict(config):
        return conflict
    if config.rounds == 0 and not config.facts.pretrains:
        return "rounds is 0, which only task 'adaptation' knows (pretraining alone); raise it"
    if config.network.site_statistics and not config.facts.pretrains:
        return (
            f"network.site-statistics is {config.network.site_statistics:g}, for a network that was pretrained "
            f"elsewhere, but task is '{config.task}'; set it to 0, or the task to 'adaptation'"
        )
    if config.network.final_statistics and (conflict := _final_statistics_conflict(config)):
        return f"network.final-statistics is true but {conflict}"
    if conflict := sharing_conflict(config) or unsupervised_conflict(config):
        return conflict
    if config.source.styles and (conflict := _styles_conflict(config)):
        return f"source.styles names styles to pretrain in but {conflict}; leave it empty"
    return None


def _final_statistics_conflict(config: RunConfig) -> str | None:
    if not config.facts.opens_labels:
        return f"task is '{config.task}'; set it to false, or the task to 'supervised'"
    if config.rounds < 2:
        return f"rounds is {config.rounds} and the last one takes no step; set it to 2 or more"
    if config.network.batchnorm != "shared" or config.centroids.share == "none":
        return "sites keep their statistics to themselves; set it to false, or let them share all"
    if config.network.freeze == "batchnorm":
        return "network.freeze is 'batchnorm', which keeps the statistics received; set one of the two"
    return None


def _styles_conflict(config: RunConfig) -> str | None:
    if not config.facts.pretrains:
        return f"task '{config.task}' does not pretrain"
    if config.source.checkpoint:
        return "source.checkpoint names a model that is pretrained already"
    if config.style.transfer == "none":
        return "style.transfer is 'none', which leaves the source as it is"
    return None


def unsupervised_conflict(config: RunConfig) -> str | None:
    """Return why these settings do not go together, in one sentence, or None."""
    if not config.facts.frozen_backbone:
        return None
    objective: str | None = OBJECTIVES.get(config.loss.objective).conflict(config)
    return (
        objective
        or (None if config.loss.facts.steps else _closed_form_conflict(config))
        or _keeper_conflict(config)
        or _draw_conflict(config)
    )


def _closed_form_conflict(config: RunConfig) -> str | None:
    """Name what the closed form, which takes no step and averages no head, has no use or no room for."""
    name = config.loss.objective
    if config.rounds < 2:
        return f"loss.objective '{name}' needs 2 rounds (sums, k-means), rounds is {config.rounds}; raise it"
    for key, value, off in _steps_only(config):
        if value != off:
            return (
                f"{key} is {_shown(value)}, but loss.objective '{name}' solves for the head from sums: it takes no "
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
    if config.centroids.share != "both":
        return (
            "aggregation.keep-least-moved lets one site keep its model while the others share theirs, but "
            f"centroids.share is '{config.centroids.share}'; set it to false, or share both"
        )
    return None


def _draw_conflict(config: RunConfig) -> str | None:
    """Name the setting of the published method that has nothing to act on."""
    local, objective = config.local, config.loss.objective
    if local.neighbour_dropout and not OBJECTIVES.get(objective).needs_neighbours(config):
        return (
            f"local.neighbour-dropout is {local.neighbour_dropout:g} but objective '{objective}' searches no "
            "neighbours with these settings; set it to 0"
        )
    if local.prox_mu and local.prox_parameters == "nonlinear" and not config.model.nonlinear:
        return (
            f"local.prox-mu is {local.prox_mu:g} for the two-layer branch (local.prox-parameters) but "
            "model.nonlinear is false; set local.prox-parameters to 'all'"
        )
    return None


def _shown(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else f"{value:g}"


def privacy_conflict(config: RunConfig) -> str | None:
    """Return why these settings do not go with the rest, in one sentence, or None."""
    privacy = config.privacy
    if not privacy.totals_only:
        return None
    why = "privacy.secure-sum" if privacy.secure_sum else "privacy.noise-multiplier"
    return _needs_single_sites(config, why) or (_not_covered(config) if privacy.noise_multiplier else None)


def _needs_single_sites(config: RunConfig, why: str) -> str | None:
    if not config.facts.private_totals:
        return f"{why} covers heads and centroid sums of task 'unsupervised', not task '{config.task}'; switch it off"
    if config.loss.facts.single_sites:
        return (
            f"loss.objective '{config.loss.objective}' needs the replies of single sites, but with {why} the server "
            "knows their total only; choose another objective, or switch it off"
        )
    if config.centroids.share != "both":
        return (
            f"centroids.share is '{config.centroids.share}', for which the server keeps parts of single sites, but "
            f"with {why} it knows their total only; use 'both'"
        )
    if config.aggregation.keep_least_moved:
        return (
            f"aggregation.keep-least-moved picks a single site's model, but with {why} the server knows the total "
            "only; set it to false"
        )
    if config.sites.minimum < 2 and config.privacy.secure_sum and config.sites.expected == 1:
        return "sites.expected is 1, but privacy.secure-sum hides a site among others; it needs 2 or more"
    if config.privacy.secure_sum and config.sites.per_round == 1:
        return "sites.per-round is 1, but privacy.secure-sum hides a site among others; it needs 2 or more"
    return None


def _not_covered(config: RunConfig) -> str | None:
    """Name what would leave a site without noise, or with noise of no known meaning."""
    privacy, facts = config.privacy, config.loss.facts
    if config.eval.where == "sites":
        return (
            "eval.where is 'sites', which sends confusion matrices without noise, but privacy.noise-multiplier is "
            f"{privacy.noise_multiplier:g}; use 'server' or 'none'"
        )
    if facts.steps and privacy.unit == "image":
        return (
            f"privacy.unit is 'image', but the change of a head by loss.objective '{config.loss.objective}' is "
            "clipped for a site as a whole; use 'site', or an objective in closed form"
        )
    if facts.steps and config.aggregation.weights != "uniform":
        return (
            f"aggregation.weights is '{config.aggregation.weights}', but noise is measured for sites that weigh the "
            "same; use 'uniform'"
        )
    missing = [name for name in ("clip_sums", *facts.clips) if not getattr(privacy, name)]
    if missing:
        return (
            f"privacy.{kebab(missing[0])} is 0, but noise only hides what is clipped; give the bound a value"
        )
    return None


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
