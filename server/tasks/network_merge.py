"""Merges the networks of one round into the next state.

Shared names: the rule of the settings over all sites, then the server optimiser on parameters; running
statistics are averaged and nothing else. A cluster's own names: the mean over its sites that answered; a
cluster nobody answered for keeps its own (the published code resets it to the shared network). A site's own
names: as it sent them, kept on its behalf so that the run can be scored and resumed; the shared network has
their mean over all sites that ever answered, not over those of the last round. Where all names are sites'
own, training is local only, and the shared network stays where it started.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from common.settings.schema import RunConfig
from common.wire import Arrays, Update
from server.aggregation.heads import aggregate, weighted_mean
from server.aggregation.server_optimizers import server_step
from server.states.network import Layout, NetworkState


def merge_networks(
    state: NetworkState,
    updates: Mapping[str, Update],
    weights: Mapping[str, float],
    layout: Layout,
    config: RunConfig,
) -> NetworkState:
    """Merge checked updates, at least one, by site name; ``weights`` are those of the sites."""
    sent = {name: update.groups["weights"] | update.groups["statistics"] for name, update in updates.items()}
    clustered = layout.cluster if state.clusters else frozenset()
    everyone = layout.shared | (layout.cluster - clustered)  # before clusters exist their names are shared
    merged, memory = merge_shared(state, only(sent, everyone), weights, layout, config)
    model = state.model | merged
    clusters = dict(state.clusters)
    if clustered:
        for cluster in sorted(clusters):
            members = {name: arrays for name, arrays in sent.items() if state.cluster_of(name) == cluster}
            if members:
                clusters[cluster] = weighted_mean(only(members, clustered), weights)
        # the shared values of clusters' names: every cluster counts once (LADD's rule), absent ones as they are
        model |= weighted_mean({str(cluster): arrays for cluster, arrays in clusters.items()})
    private, counts = dict(state.private), dict(state.weights)
    if layout.site:
        mine = only(sent, layout.site)
        private |= {
            name: {key: np.array(value) for key, value in arrays.items()} for name, arrays in mine.items()
        }
        if not layout.local_only:
            counts |= {name: weights[name] for name in mine}
            # a checkpoint of an earlier release does not say what a site counts for until it answers again
            model |= weighted_mean({name: private[name] for name in counts}, counts)
    return replace(state, model=model, clusters=clusters, private=private, memory=memory, weights=counts)


def merge_shared(
    state: NetworkState,
    sent: Mapping[str, Arrays],
    weights: Mapping[str, float],
    layout: Layout,
    config: RunConfig,
) -> tuple[Arrays, Arrays]:
    """Return the shared arrays of the next state, and the server optimiser's memory."""
    if not next(iter(sent.values())):
        return {}, state.memory
    average = aggregate(sent, weights, config.aggregation).arrays
    trained = {key: value for key, value in average.items() if key in layout.parameters}
    before = {key: state.model[key] for key in trained}
    stepped, memory = server_step(before, trained, state.memory, config.aggregation)
    return average | stepped, memory


def only(sent: Mapping[str, Arrays], keys: Collection[str]) -> dict[str, Arrays]:
    """Return what every site sent under some names."""
    return {name: {key: arrays[key] for key in sorted(keys)} for name, arrays in sent.items()}
