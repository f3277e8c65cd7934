"""Batch norm statistics pooled over sites, as if all images were in one place.

While a network is trained over sites, its running statistics follow the last rounds' sites, and a mean of
variances forgets that the sites' means differ. Once its weights are final, every site measures them on its own
images, and the moments are pooled (law of total variance), as precise batch norm does on one data set (Wu and
Johnson, "Rethinking Batch in BatchNorm", 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from common.settings.schema import RunConfig
from common.wire import Arrays, Update
from server.aggregation.heads import aggregate
from server.states.network import Layout, NetworkState
from server.tasks.network_merge import only

MEAN, VARIANCE = "running_mean", "running_var"


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
