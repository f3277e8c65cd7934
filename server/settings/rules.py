"""Conflicts of settings: a table of what does not go together, and what facts of registered names forbid.

Only the server asks: a site takes what it is sent. `server.settings.network_rules` holds the table of whole networks,
and every objective its own conflicts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from common.errors import UserError
from common.models.network import NETWORKS
from common.privacy.secure_masks import fewest_together
from common.registry import Registry
from common.settings.objectives import OBJECTIVES
from common.settings.schema import RunConfig
from common.settings.section import Scalar, kebab
from server.aggregation.heads import HEAD_RULES
from server.aggregation.server_optimizers import OPTIMIZERS
from server.centroids.base import CENTROID_RULES

# A key, the values that it may have, and what follows "KEY is VALUE, " where it has another. ``[KEY]`` stands for
# another key's value. The remedy is the first value allowed; where none is, the text says it.
Conflict: TypeAlias = tuple[str, tuple[Scalar, ...], str]

# Rows by the situation in which they hold.
ConflictTable: TypeAlias = Mapping[Callable[[RunConfig], object], tuple[Conflict, ...]]

_TOTAL = "but with secure summation or noise the server knows the sites' total only"
_HIDES = "but privacy.secure-sum hides a site among others; it needs privacy.colluders + 2 sites"
_OWN = "but centroids.share is [centroids.share], where every site keeps what it trains"
_SOLVES = (
    "but loss.objective [loss.objective] solves for the head from sums: it takes no step and averages no head"
)
_ALONE = "but loss.objective [loss.objective] fits one set of centroids; choose objective 'principal'"
# two of 256 values mean that a pixel is not certain, or was not seen
MOST_MASKED = 254
_STYLES = "styles to pretrain in, but"


def _least(config: RunConfig) -> int:
    return fewest_together(config.privacy.colluders)


def _steps(config: RunConfig) -> bool:
    return config.facts.frozen_backbone and config.loss.facts.steps


def _closed(config: RunConfig) -> bool:
    return config.facts.frozen_backbone and not config.loss.facts.steps


RULES: ConflictTable = {
    lambda c: c.loss.augmentation_weight and not c.cache.views: (
        ("loss.augmentation-weight", (0,), "but cache.views is 0; set cache.views to 1 or more"),
    ),
    lambda c: c.sites.per_round and c.sites.minimum > c.sites.per_round: (
        (
            "sites.minimum",
            (),
            "but sites.per-round is [sites.per-round]; a round could never count, so lower the one or raise the other",
        ),
    ),
    # private totals cover one form of reply, and no site's own
    lambda c: c.privacy.totals_only and not c.facts.private_totals: (
        (
            "task",
            ("unsupervised",),
            "but secure summation and noise cover heads and centroid sums, not task [task]; switch them off",
        ),
    ),
    lambda c: c.privacy.totals_only and c.loss.facts.single_sites: (
        (
            "loss.objective",
            (),
            f"which needs the replies of single sites, {_TOTAL}; choose another objective",
        ),
    ),
    lambda c: c.privacy.totals_only: (
        ("centroids.share", ("both",), f"for which the server keeps parts of single sites, {_TOTAL}"),
        ("aggregation.keep-least-moved", (False,), f"which picks a single site's model, {_TOTAL}"),
    ),
    lambda c: c.privacy.secure_sum and 0 < c.sites.expected < _least(c) > c.sites.minimum: (
        ("sites.expected", (), _HIDES),
    ),
    lambda c: c.privacy.secure_sum and 0 < c.sites.per_round < _least(c): (("sites.per-round", (), _HIDES),),
    lambda c: c.privacy.noise_multiplier: (
        ("eval.where", ("server", "none"), "which sends confusion matrices without noise"),
    ),
    lambda c: c.privacy.noise_multiplier and _steps(c): (
        (
            "privacy.unit",
            ("site",),
            "but the change of a head by loss.objective [loss.objective] is clipped for a site as a whole",
        ),
        ("aggregation.weights", ("uniform",), "but noise is measured for sites that weigh the same"),
    ),
    lambda c: (c.facts.frozen_backbone or c.facts.from_clusters) and not c.loss.facts.starts: (
        ("things.each-picture", ("several",), _ALONE),
        ("codes.center", ("none", "image"), _ALONE),
        ("centroids.over", (0,), _ALONE),
        ("centroids.starts", (1,), _ALONE),
    ),
    lambda c: (c.facts.frozen_backbone or c.facts.from_clusters) and c.loss.facts.starts: (
        ("centroids.momentum", (0,), "but starts are compared pass by pass, without a running average"),
    ),
    lambda c: c.facts.from_clusters and c.model.clusters > MOST_MASKED: (
        (
            "model.clusters",
            (),
            f"but masks of a student are bytes that hold {MOST_MASKED} clusters; set it to {MOST_MASKED} or less",
        ),
    ),
    # what one task alone knows
    lambda c: c.rounds == 0 and not c.facts.pretrains: (
        ("rounds", (), "which only task 'adaptation' knows (pretraining alone); raise it"),
    ),
    lambda c: not c.facts.pretrains: (
        ("network.site-statistics", (0,), "for a network that was pretrained elsewhere, but task is [task]"),
        ("source.styles", ("",), f"{_STYLES} task [task] does not pretrain"),
    ),
    lambda c: c.source.checkpoint: (
        ("source.styles", ("",), f"{_STYLES} source.checkpoint names a model that is pretrained already"),
    ),
    lambda c: c.style.transfer == "none": (
        ("source.styles", ("",), f"{_STYLES} style.transfer is 'none', which leaves the source as it is"),
    ),
    lambda c: c.facts.pretrains: (("network.final-statistics", (False,), "but task is [task]"),),
    lambda c: c.rounds < 2: (
        ("network.final-statistics", (False,), "but rounds is [rounds] and the last one takes no step"),
    ),
    lambda c: c.network.batchnorm != "shared" or c.centroids.share == "none": (
        ("network.final-statistics", (False,), "but sites keep their statistics to themselves"),
    ),
    lambda c: c.network.freeze == "batchnorm": (
        (
            "network.final-statistics",
            (False,),
            "but network.freeze is 'batchnorm', which keeps those received",
        ),
    ),
    # what merges where nothing is merged, or acts on steps that nobody takes
    lambda c: c.centroids.share not in ("both", "head"): (
        ("aggregation.rule", ("mean",), _OWN),
        ("aggregation.optimizer", ("none",), _OWN),
    ),
    lambda c: _closed(c) and c.rounds < 2: (
        ("rounds", (), "but loss.objective [loss.objective] needs 2 rounds (sums, k-means); raise it"),
    ),
    _closed: (
        ("centroids.reset-round", (0,), _SOLVES),
        ("local.prox-mu", (0,), _SOLVES),
        ("local.moon-weight", (0,), _SOLVES),
        ("loss.reconstruction-weight", (0,), _SOLVES),
        ("loss.augmentation-weight", (0,), _SOLVES),
        ("loss.crf-weight", (0,), _SOLVES),
        ("aggregation.rule", ("mean",), _SOLVES),
        ("aggregation.optimizer", ("none",), _SOLVES),
    ),
    lambda c: c.facts.frozen_backbone and c.centroids.share != "both": (
        (
            "aggregation.keep-least-moved",
            (False,),
            "which lets one site keep its model while others share theirs, but centroids.share is [centroids.share]",
        ),
    ),
    lambda c: c.facts.frozen_backbone and not OBJECTIVES.get(c.loss.objective).needs_neighbours(c): (
        (
            "local.neighbour-dropout",
            (0,),
            "but objective [loss.objective] searches no neighbours with these settings",
        ),
    ),
    lambda c: _steps(c) and c.local.prox_mu and not c.model.nonlinear: (
        ("local.prox-parameters", ("all",), "the two-layer branch, but model.nonlinear is false"),
    ),
}


def broken(table: ConflictTable, config: RunConfig) -> str | None:
    """Return the first conflict of a table, in one sentence without its full stop, or None."""
    # the first row that does not hold is told; there is one remedy at a time
    flat = config.to_flat()
    rows = (row for when, rows in table.items() if when(config) for row in rows)
    for key, allowed, why in rows:
        if flat[key] not in allowed:
            text = re.sub(r"\[([a-z.-]+)\]", lambda found: _shown(flat[found[1]]), why)
            remedy = f"; set it to {' or '.join(map(_shown, allowed))}" if allowed else ""
            return f"{key} is {_shown(flat[key])}, {text}{remedy}"
    return None


def _shown(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if isinstance(value, str) else f"{value:g}"


def conflict_of(config: RunConfig) -> str | None:
    """Return the first conflict of a run's settings, in one sentence without its full stop, or None."""
    own: str | None = None
    if config.facts.frozen_backbone:
        own = OBJECTIVES.get(config.loss.objective).conflict(config)
    return broken(RULES, config) or own or _unbounded(config)


def _unbounded(config: RunConfig) -> str | None:
    """Name the bound without which noise hides nothing."""
    privacy = config.privacy
    bounds = ("clip_sums", *config.loss.facts.clips) if privacy.noise_multiplier else ()
    missing = next((name for name in bounds if not getattr(privacy, name)), None)
    if missing is None:
        return None
    return f"privacy.{kebab(missing)} is 0, but noise only hides what is clipped; give the bound a value"


# The registry in which the value of a key is looked up.
REGISTRIES: dict[str, Registry[Any, Any]] = {
    "centroids.merge": CENTROID_RULES,
    "aggregation.rule": HEAD_RULES,
    "aggregation.optimizer": OPTIMIZERS,
    "loss.objective": OBJECTIVES,
    "network.architecture": NETWORKS,
}


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
    if not config.loss.facts.steps and facts.takes != "sums" and not facts.robust:
        return (
            f"loss.objective '{config.loss.objective}' needs centroids.merge 'lloyd', or a robust rule, not '{merge}'; "
            "its sites send sums, not centroids of their own"
        )
    if config.aggregation.keep_least_moved and facts.takes == "sums":
        return (
            f"aggregation.keep-least-moved goes by how far sites move the centroids, but with "
            f"centroids.merge '{merge}' none moves them; set it to false, or choose another rule"
        )
    return None
