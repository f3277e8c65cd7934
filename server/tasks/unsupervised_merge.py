"""The merge of one round: updates of the sites become the next model.

Pure functions from state and updates to state. Everything goes by site name, so that the order in which
replies arrive changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from common.clustering.linkage import join_clusters
from common.errors import UserError
from common.losses.base import CLUSTERS, TRAIN, closed_form
from common.settings.federation import Aggregation
from common.settings.schema import RunConfig
from common.wire import Arrays, Groups, Update
from server.aggregation.heads import HEAD_RULES, aggregate, site_weights, weighted_mean
from server.aggregation.server_optimizers import server_step
from server.centroids.base import (
    CENTROID_RULES,
    Merged,
    Rule,
    RuleInput,
    SiteRows,
    merge_centroids,
    stack_sites,
)
from server.centroids.lloyd import merge_lloyd
from server.centroids.starts import MOST_TOLD, Fitted, pass_of_starts
from server.states import ModelState, private_groups
from server.tasks.projection import middle_sums, remembered_sums

log = logging.getLogger(__name__)

_OPTIMIZER = "optimizer/"
_CENTROIDS = "centroids/"
_PRIVATE_CENTROIDS = "own-centroids/"  # as in the checkpoints of version 0.1


def merge_round(
    state: ModelState, updates: Mapping[str, Update], config: RunConfig, phase: str = TRAIN
) -> ModelState:
    """Merge one round of checked updates, at least one, into the next state."""
    private = private_groups(config)
    if phase == CLUSTERS:
        return kmeans_pass(state, updates, config)
    if phase != TRAIN:
        return solve(state, updates, config)
    merged = state
    weights = site_weights(updates, config.aggregation)
    # head and centroids have rules of their own; neither applies where sites keep the part to themselves
    if "head" not in private:
        merged = merge_heads(merged, updates, weights, config)
    if "centroids" not in private:
        merged = merge_round_centroids(merged, updates, weights, config)
    if private:
        kept = {name: private_parts(update, private) for name, update in updates.items()}
        merged = replace(merged, private=merged.private | kept)
    if "centroids" in private and CENTROID_RULES.facts(config.centroids.merge).takes == "sums":
        merged = kmeans_pass(merged, updates, config, under=state)
    if config.aggregation.keep_least_moved:
        # the published 'custom' variant: one site goes on with its own model; it is nobody else's
        least = min(sorted(updates), key=lambda name: updates[name].metrics.get("displacement", 0.0))
        groups = private_parts(updates[least], ("head", "shared", "centroids"))
        merged = replace(merged, private={least: groups})
    return merged


def solve(state: ModelState, updates: Mapping[str, Update], config: RunConfig) -> ModelState:
    """Return a state whose head and first centroids a closed form made of all sites' sums, or of each site's own."""
    closed = closed_form(config)
    assert closed is not None, "only closed forms have rounds of sums of their own"
    robust = CENTROID_RULES.facts(config.centroids.merge).robust

    def solved(names: Iterable[str]) -> Groups:
        parts = [updates[name].groups[closed.kind] for name in sorted(names)]
        try:
            head, centroids = closed.merge(
                [middle_sums(parts, closed)] if robust and len(parts) > 1 else parts
            )
        except ValueError as error:
            raise UserError(f"The projection cannot be found: {error}") from None
        return {"head": head, "centroids": {"centroids": centroids}}

    private = private_groups(config)
    kept = dict(state.private)
    for name in updates if private else ():
        parts = solved([name])
        kept[name] = kept.get(name, {}) | {group: parts[group] for group in private if group in parts}
    memory = state.memory | remembered_sums(
        {name: u.groups[closed.kind] for name, u in updates.items()}, config
    )
    state = replace(state, private=kept, solved=True, memory=memory)
    if "head" in private and "centroids" in private:
        return state
    found = solved(updates)
    head = state.head if "head" in private else found["head"]
    centroids = state.centroids if "centroids" in private else found["centroids"]["centroids"]
    if config.loss.facts.starts:  # the first one stands for all until a pass has compared them
        groups = np.stack([join_clusters(start, config.fitted_clusters) for start in centroids])
        starts = {"centroids": centroids, "groups": groups}
        return replace(state, head=head, starts=starts, **_kept_start(starts, 0, config.centerings[0]))
    return replace(state, head=head, centroids=centroids)


def private_parts(update: Update, groups: Iterable[str]) -> Groups:
    """Return the parts of an update that its site goes on with by itself; not every objective has ``shared``."""
    parts: Groups = {group: dict(update.groups[group]) for group in groups if group in update.groups}
    if "centroids" in parts:
        # counts are of this round, not of the model
        del parts["centroids"]["counts"]
    return parts


def merge_heads(
    state: ModelState, updates: Mapping[str, Update], weights: Mapping[str, float], config: RunConfig
) -> ModelState:
    """Aggregate the heads by the rule of the settings and take the server optimizer's step.

    What the objective trains beside the head is aggregated by the same rule, without a step.
    """
    heads = {name: update.groups["head"] for name, update in updates.items()}
    average = aggregate(heads, weights, config.aggregation)
    head, moments = server_step(
        state.head, average.arrays, _remembered(state, _OPTIMIZER), config.aggregation
    )
    memory = {k: v for k, v in state.memory.items() if not k.startswith(_OPTIMIZER)}
    memory |= {_OPTIMIZER + k: v for k, v in moments.items()}
    shared = merge_beside(updates, weights, average.sites, config.aggregation) if state.shared else {}
    return replace(state, head=head, shared=shared, memory=memory)


def merge_beside(
    updates: Mapping[str, Update], weights: Mapping[str, float], chosen: Iterable[str], settings: Aggregation
) -> Arrays:
    """Merge what the objective trains beside the head by the head's rule.

    A rule that picks whole sites by their heads takes those ``chosen`` here as well.
    """
    arrays = {name: updates[name].groups["shared"] for name in chosen}
    facts = HEAD_RULES.facts(settings.rule)
    if facts.picks:
        return weighted_mean(arrays, weights if facts.weighted else None)
    return aggregate(arrays, weights, settings).arrays


def merge_round_centroids(
    state: ModelState, updates: Mapping[str, Update], weights: Mapping[str, float], config: RunConfig
) -> ModelState:
    """Merge the centroids by the rule of the settings."""
    takes = CENTROID_RULES.facts(config.centroids.merge).takes
    merged = merge_centroids(
        state.centroids, site_rows(updates, takes), config.centroids, weights, _remembered(state, _CENTROIDS)
    )
    return _with_centroids(state, merged)


def site_rows(updates: Mapping[str, Update], group: str) -> dict[str, SiteRows]:
    """Return what every site sent in group ``centroids`` or ``sums``: a row and a count for each cluster."""
    return {
        name: SiteRows(update.groups[group][group], update.groups[group]["counts"])
        for name, update in updates.items()
    }


def kmeans_pass(
    state: ModelState,
    updates: Mapping[str, Update],
    config: RunConfig,
    *,
    under: ModelState | None = None,
    use_momentum: bool = True,
) -> ModelState:
    """Take one spherical k-means step from the sites' sums, or of each site by itself where centroids are private.

    ``under`` holds the centroids that the sums were taken under, by default ``state`` does. The rule of the settings
    is applied where it takes sums or is robust, else exact k-means. A robust rule also holds for polish passes: the
    direction of a site's sums has one vote, whereas a total would believe whatever counts are claimed. With momentum
    sums are a running total; polish passes look at one model only, so they carry none over.
    """
    chosen = CENTROID_RULES.entry(config.centroids.merge)
    if state.starts:
        return _starts_pass(state, updates, config)
    settings = config.centroids if use_momentum else config.centroids.model_copy(update={"momentum": 0.0})
    rows = site_rows(updates, "sums")

    def step(rule: Rule, current: np.ndarray, sites: Mapping[str, SiteRows], prefix: str) -> Merged:
        memory = _remembered(state, prefix)
        return rule(RuleInput(current, stack_sites(sites, current), settings, memory=memory))

    if "centroids" not in private_groups(config):
        rule = chosen.value if chosen.facts.takes == "sums" or chosen.facts.robust else merge_lloyd
        return _with_centroids(state, step(rule, state.centroids, rows, _CENTROIDS))
    rule = chosen.value if chosen.facts.takes == "sums" else merge_lloyd  # one site has nobody to outvote
    private, memory = dict(state.private), dict(state.memory)
    for name, site in rows.items():
        prefix = f"{_PRIVATE_CENTROIDS}{name}/"
        current = (under or state).groups_for(name)["centroids"]["centroids"]
        merged = step(rule, current, {name: site}, prefix)
        private[name] = private.get(name, {}) | {"centroids": {"centroids": merged.centroids}}
        if settings.momentum:
            memory |= {prefix + k: v for k, v in merged.state.items()}
    return replace(state, private=private, memory=memory)


def _starts_pass(state: ModelState, updates: Mapping[str, Update], config: RunConfig) -> ModelState:
    """Take one pass for all starts; the model is the one that is chosen (see `server.centroids.starts`)."""
    chosen = CENTROID_RULES.entry(config.centroids.merge)
    rule = chosen.value if chosen.facts.takes == "sums" or chosen.facts.robust else merge_lloyd
    sums = {name: update.groups["sums"] for name, update in updates.items()}
    images = sum(int(update.facts["images"]) for update in updates.values())
    found = pass_of_starts(state.starts["centroids"], sums, images, rule, config)
    log.info(
        "start %d of %d is kept: the others of its kind agree with it most (%s)%s",
        found.best + 1,
        len(found.centroids),
        ", ".join(f"{value:.2f}" for value in found.agreement),
        _centering(found) if len(config.centerings) > 1 else "",
    )
    starts = {"centroids": found.centroids, "groups": found.groups}
    return replace(state, starts=starts, **_kept_start(starts, found.best, found.centered))


def _centering(found: Fitted) -> str:
    told = found.told[int(np.argmax(found.agreement[: len(found.told) // 2]))]
    verdict = "so codes are centered" if found.centered else "so codes stay as they are"
    return (
        f"; clusters spend {told:.2f} of their entropy on telling images apart (limit {MOST_TOLD}), {verdict}"
    )


def _kept_start(starts: Arrays, index: int, centered: bool) -> dict[str, Any]:
    joined = {"groups": starts["groups"][index], "centered": np.array([centered], dtype=np.int8)}
    return {"centroids": starts["centroids"][index], "joined": joined}


def _remembered(state: ModelState, prefix: str) -> Arrays:
    return {k.removeprefix(prefix): v for k, v in state.memory.items() if k.startswith(prefix)}


def _with_centroids(state: ModelState, merged: Merged) -> ModelState:
    memory = {k: v for k, v in state.memory.items() if not k.startswith(_CENTROIDS)}
    return replace(
        state,
        centroids=merged.centroids,
        memory=memory | {_CENTROIDS + k: v for k, v in merged.state.items()},
    )
