"""Merges the networks of one round into the next state.

Shared names: the rule of the settings over all sites, then the server optimiser on parameters; running
statistics are averaged and nothing else. A cluster's own names: the mean over its sites that answered; a
cluster nobody answered for keeps its own (the published code resets it to the shared network). A site's own
names: as it sent them, kept on its behalf so that the run can be scored and resumed; the shared network has
their mean over all sites that ever answered, not over those of the last round. Where all names are sites'
own, training is local only: networks stay at the sites, and the shared one where it started.

Batch norm statistics can be pooled as if all images were in one place. While a network is trained over sites, its
running statistics follow the last rounds' sites, and a mean of variances forgets that the sites' means differ. Once
its weights are final, every site measures them on its own images, and the moments are pooled (law of total
variance), as precise batch norm does on one data set (Wu and Johnson, "Rethinking Batch in BatchNorm", 2021).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from common.settings.schema import RunConfig
from common.wire import Arrays, Update
from server.aggregation.heads import aggregate, weighted_mean
from server.aggregation.server_optimizers import server_step
from server.states import Layout, NetworkState

MEAN, VARIANCE = "running_mean", "running_var"


def merge_networks(
    state: NetworkState,
    updates: Mapping[str, Update],
    weights: Mapping[str, float],
    layout: Layout,
    config: RunConfig,
) -> NetworkState:
    """Merge checked updates, at least one, by site name; ``weights`` are those of the sites."""
    if layout.local_only:
        # shown for a score, or not at all: what was sent lies in files, until the next round is merged
        shown = {name: update.groups for name, update in updates.items() if update.groups}
        return replace(
            state, private={name: groups["weights"] | groups["statistics"] for name, groups in shown.items()}
        )
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
            # copies: what was sent lies in a file that goes with the round
            name: {key: np.array(value) for key, value in arrays.items()}
            for name, arrays in mine.items()
        }
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
    average = aggregate(sent, weights, config.aggregation).arrays
    trained = {key: value for key, value in average.items() if key in layout.parameters}
    before = {key: state.model[key] for key in trained}
    stepped, memory = server_step(before, trained, state.memory, config.aggregation)
    return average | stepped, memory


def only(sent: Mapping[str, Arrays], keys: Collection[str]) -> dict[str, Arrays]:
    """Return what every site sent under some names."""
    return {name: {key: arrays[key] for key in sorted(keys)} for name, arrays in sent.items()}


def pooled(sent: Mapping[str, Arrays], weights: Mapping[str, float], config: RunConfig) -> Arrays:
    """Return mean and variance of all sites' activations, by name, from each site's: E[x^2] - E[x]^2.

    Sites count by ``weights``; the rule that merges heads merges the two moments.
    """
    moments = {site: _moments(arrays) for site, arrays in sent.items()}
    merged = aggregate(moments, weights, config.aggregation).arrays
    found: Arrays = {}
    for name, value in merged.items():
        if name.endswith(VARIANCE):
            mean = merged[name.removesuffix(VARIANCE) + MEAN]
            value = np.maximum(value - mean**2, 0)  # a median of squares knows nothing of the median
        found[name] = value.astype(np.float32)
    return found


def _moments(arrays: Arrays) -> Arrays:
    wide = {name: value.astype(np.float64) for name, value in arrays.items()}
    return {
        name: value + wide[name.removesuffix(VARIANCE) + MEAN] ** 2 if name.endswith(VARIANCE) else value
        for name, value in wide.items()
    }


def merge_statistics(
    state: NetworkState,
    updates: Mapping[str, Update],
    weights: Mapping[str, float],
    layout: Layout,
    config: RunConfig,
) -> NetworkState:
    """Replace the running statistics by those of all sites, clusters' own by those of their sites."""
    sent = {name: update.groups["statistics"] for name, update in updates.items()}
    clustered = (layout.cluster if state.clusters else frozenset()) & layout.statistics
    model = state.model | pooled(only(sent, layout.statistics - clustered), weights, config)
    clusters = dict(state.clusters)
    if clustered:
        for cluster in clusters:
            members = {name: arrays for name, arrays in sent.items() if state.cluster_of(name) == cluster}
            if members:
                clusters[cluster] = clusters[cluster] | pooled(only(members, clustered), weights, config)
        model |= pooled(only(sent, clustered), weights, config)
    return replace(state, model=model, clusters=clusters)
