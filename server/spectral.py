"""How do the sites' sums become the projection and the first centroids of the spectral objective?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from common.config import RunConfig
from common.errors import UserError
from common.kmeans import spherical_kmeans
from common.seeds import derive
from common.spectral import PatchScatter, join, separating_projection
from common.wire import Arrays, Groups, Update
from server.model_state import ModelState, own_groups

STARTS = 40


def solve_heads(state: ModelState, updates: Mapping[str, Update], config: RunConfig) -> ModelState:
    """Return a state whose head is the projection of all sites' sums, or of each site's own."""
    if "head" not in own_groups(config):
        return replace(state, head=head_from(updates, config))
    own = dict(state.own)
    for name, update in updates.items():
        own[name] = own.get(name, {}) | {"head": head_from({name: update}, config)}
    return replace(state, own=own)


def head_from(updates: Mapping[str, Update], config: RunConfig) -> Arrays:
    """Add up the sites' sums in the order of their names and solve for the linear head."""
    scatter = join([PatchScatter.from_arrays(updates[name].groups["scatter"]) for name in sorted(updates)])
    try:
        weight, bias, _ = separating_projection(
            scatter, config.model.dim, config.loss.spectral_whiten, config.loss.spectral_ridge
        )
    except (ValueError, np.linalg.LinAlgError) as error:
        raise UserError(f"The projection cannot be found: {error}") from None
    return {"linear.weight": weight.astype(np.float32), "linear.bias": bias.astype(np.float32)}


def seed_centroids(state: ModelState, updates: Mapping[str, Update], config: RunConfig) -> ModelState:
    """Return a state whose centroids are seeded from all sites' proposals, or from each site's own."""
    if "centroids" not in own_groups(config):
        return replace(state, centroids=centroids_from(updates, config))
    own = dict(state.own)
    for name, update in updates.items():
        groups: Groups = {"centroids": {"centroids": centroids_from({name: update}, config)}}
        own[name] = own.get(name, {}) | groups
    return replace(state, own=own)


def centroids_from(updates: Mapping[str, Update], config: RunConfig) -> np.ndarray:
    """Cluster the proposals, weighted by the patches behind them: float32 [K, D], unit rows.

    Many starts cost nothing here: the points are a few hundred directions.
    """
    names = sorted(updates)
    points = np.concatenate([updates[name].groups["proposals"]["directions"] for name in names])
    counts = np.concatenate([updates[name].groups["proposals"]["counts"] for name in names])
    live = (counts > 0) & (np.linalg.norm(points, axis=1) > 0)
    found = spherical_kmeans(
        points[live].astype(np.float64),
        config.model.clusters,
        derive(config.seed, "centroids"),
        weights=counts[live].astype(np.float64),
        restarts=STARTS,
    )
    return found.centres.astype(np.float32)
