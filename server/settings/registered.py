"""Registered names in settings: checks them, lists them, and refuses what their facts forbid."""

from __future__ import annotations

from typing import Any

from common.errors import UserError
from common.models.network import NETWORKS
from common.registry import Registry
from common.settings.objectives import OBJECTIVES
from common.settings.schema import RunConfig
from server.aggregation.heads import HEAD_RULES
from server.aggregation.server_optimizers import OPTIMIZERS
from server.centroids.base import CENTROID_RULES

REGISTRIES: dict[str, Registry[Any, Any]] = {
    "centroids.merge": CENTROID_RULES,
    "aggregation.rule": HEAD_RULES,
    "aggregation.optimizer": OPTIMIZERS,
    "loss.objective": OBJECTIVES,
    "network.architecture": NETWORKS,
}
"""The registry in which the value of a key is looked up."""


def check_names(config: RunConfig) -> None:
    """Raise `UserError` with the known names for the first value that nothing is registered under."""
    flat = config.to_flat()
    for key, registry in REGISTRIES.items():
        try:
            registry.entry(str(flat[key]))
        except UserError as error:
            raise UserError(f"Setting '{key}': {error}") from None


def explained_names() -> dict[str, str]:
    """Return by key the names that it takes, each with what it does."""
    return {
        key: "\n".join(f"{entry.name}: {entry.summary}" for entry in registry.entries())
        for key, registry in REGISTRIES.items()
    }


def rule_conflict(config: RunConfig) -> str | None:
    """Return what the facts of the chosen rules do not go with, in one sentence without its full stop, or None."""
    merge, rule, privacy = config.centroids.merge, config.aggregation.rule, config.privacy
    facts = CENTROID_RULES.facts(merge)
    if privacy.totals_only:
        why = "privacy.secure-sum" if privacy.secure_sum else "privacy.noise-multiplier"
        if HEAD_RULES.facts(rule).single_sites:
            return (
                f"aggregation.rule '{rule}' compares the heads of single sites, but with {why} the server knows "
                "their total only; use 'mean'"
            )
        if facts.single_sites:
            return (
                f"centroids.merge '{merge}' compares the centroids of single sites, but with {why} the server knows "
                "their total only; use 'lloyd'"
            )
        if privacy.noise_multiplier and facts.takes != "sums":
            return f"centroids.merge '{merge}' sends centroids, for which there is no noise; use 'lloyd'"
    if not config.facts.frozen_backbone:
        return None
    if not config.loss.facts.steps and facts.takes != "sums":
        return (
            f"loss.objective '{config.loss.objective}' needs centroids.merge 'lloyd', not '{merge}'; its sites send "
            "sums, not centroids of their own"
        )
    if config.aggregation.keep_least_moved and facts.takes == "sums":
        return (
            f"aggregation.keep-least-moved goes by how far sites move the centroids, but with "
            f"centroids.merge '{merge}' none moves them; set it to false, or choose another rule"
        )
    return None
