"""How do the updates of one round become the next model?

Pure functions from state and updates to state. Everything goes by site name, so that the order in which
replies arrive changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from common.config import RunConfig
from common.phases import Phase
from common.wire import Arrays, Groups, Update
from server.aggregate import aggregate, site_weight, weighted_mean
from server.centroid_lloyd import SiteSums
from server.centroids import Merged, SiteCentroids, merge_centroids, merge_lloyd, total_sums
from server.model_state import ModelState, own_groups
from server.optimizers import server_step
from server.spectral import solve

OPTIMIZER = "optimizer/"
CENTROIDS = "centroids/"
ROBUST = ("matched-median", "matched-geometric")


def weights_of(updates: Mapping[str, Update], config: RunConfig) -> dict[str, float]:
    """Return each site's weight in the head average."""
    how = config.aggregation.weights
    return {
        name: site_weight(how, int(update.facts["images"]), int(update.facts["batches"]))
        for name, update in updates.items()
    }


def merge_round(
    state: ModelState, updates: Mapping[str, Update], config: RunConfig, phase: Phase = "train"
) -> ModelState:
    """Merge one round of checked updates, at least one, into the next state."""
    own = own_groups(config)
    if phase == "scatter":
        return solve(state, updates, config)
    if phase == "clusters":
        if "centroids" in own:
            return own_lloyd_pass(state, state, updates, config)
        return lloyd_pass(state, updates, config)
    merged = state
    weights = weights_of(updates, config)
    if "head" not in own:
        merged = merge_heads(merged, updates, weights, config)
    if "centroids" not in own:
        merged = merge_round_centroids(merged, updates, weights, config)
    if own:
        kept: dict[str, Groups] = {
            name: {group: own_arrays(update, group) for group in own} for name, update in updates.items()
        }
        merged = replace(merged, own=merged.own | kept)
    if "centroids" in own and config.centroids.merge == "lloyd":
        merged = own_lloyd_pass(merged, state, updates, config)
    if state.shared:
        shared = {name: update.groups["shared"] for name, update in updates.items()}
        merged = replace(merged, shared=weighted_mean(shared, weights))
    if config.aggregation.keep_least_moved and config.centroids.share == "both":
        # the published 'custom' variant: one site goes on with its own model; it is nobody else's
        least = min(sorted(updates), key=lambda name: updates[name].metrics.get("displacement", 0.0))
        groups = {group: own_arrays(updates[least], group) for group in ("head", "centroids")}
        merged = replace(merged, own={least: groups})
    return merged


def own_arrays(update: Update, group: str) -> Arrays:
    """Return the part of an update that its site goes on with by itself."""
    if group == "head":
        return dict(update.groups["head"])
    return {"centroids": update.groups["centroids"]["centroids"]}


def merge_heads(
    state: ModelState, updates: Mapping[str, Update], weights: Mapping[str, float], config: RunConfig
) -> ModelState:
    """Aggregate the heads by the rule of the settings and take the server optimiser's step."""
    heads = {name: update.groups["head"] for name, update in updates.items()}
    average = aggregate(heads, weights, config.aggregation).arrays
    moments = {k.removeprefix(OPTIMIZER): v for k, v in state.memory.items() if k.startswith(OPTIMIZER)}
    head, moments = server_step(state.head, average, moments, config.aggregation)
    memory = {k: v for k, v in state.memory.items() if not k.startswith(OPTIMIZER)}
    return replace(state, head=head, memory=memory | {OPTIMIZER + k: v for k, v in moments.items()})


def merge_round_centroids(
    state: ModelState, updates: Mapping[str, Update], weights: Mapping[str, float], config: RunConfig
) -> ModelState:
    """Merge the centroids by the rule of the settings."""
    if config.centroids.merge == "lloyd":
        return lloyd_pass(state, updates, config)
    sites = {
        name: SiteCentroids(update.groups["centroids"]["centroids"], update.groups["centroids"]["counts"])
        for name, update in updates.items()
    }
    return _with_centroids(state, merge_centroids(state.centroids, sites, config.centroids, weights))


def lloyd_pass(
    state: ModelState, updates: Mapping[str, Update], config: RunConfig, *, use_momentum: bool = True
) -> ModelState:
    """Take one spherical k-means step from the sites' sums: exactly, or by the robust rule of the settings.

    A robust rule also holds for polish passes: the direction of a site's sums has one vote, whereas a total would
    believe whatever counts are claimed. Polish passes look at one model only, so they carry no momentum over.
    """
    if config.centroids.merge in ROBUST:
        votes = {
            name: SiteCentroids(update.groups["sums"]["sums"], update.groups["sums"]["counts"])
            for name, update in updates.items()
        }
        return _with_centroids(state, merge_centroids(state.centroids, votes, config.centroids))
    sites = {
        name: SiteSums(update.groups["sums"]["sums"], update.groups["sums"]["counts"])
        for name, update in updates.items()
    }
    memory = {k.removeprefix(CENTROIDS): v for k, v in state.memory.items() if k.startswith(CENTROIDS)}
    merged = merge_lloyd(
        state.centroids,
        total_sums(sites, state.centroids),
        memory,
        momentum=config.centroids.momentum if use_momentum else 0.0,
        empty=config.centroids.empty,
    )
    return _with_centroids(state, merged)


def own_lloyd_pass(
    state: ModelState, before: ModelState, updates: Mapping[str, Update], config: RunConfig
) -> ModelState:
    """Take every site's own k-means step from its own sums alone: centroids that are not shared.

    ``before`` holds the centroids that the sums were taken under.
    """
    own = dict(state.own)
    for name, update in updates.items():
        current = before.groups_for(name)["centroids"]["centroids"]
        sums = SiteSums(update.groups["sums"]["sums"], update.groups["sums"]["counts"])
        merged = merge_lloyd(current, total_sums({name: sums}, current), empty=config.centroids.empty)
        own[name] = own.get(name, {}) | {"centroids": {"centroids": merged.centroids}}
    return replace(state, own=own)


def _with_centroids(state: ModelState, merged: Merged) -> ModelState:
    memory = {k: v for k, v in state.memory.items() if not k.startswith(CENTROIDS)}
    return replace(
        state,
        centroids=merged.centroids,
        memory=memory | {CENTROIDS + k: v for k, v in merged.state.items()},
    )
