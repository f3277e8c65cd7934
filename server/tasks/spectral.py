"""How do the sites' sums become the projection and the first centroids of the spectral objective?"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from common.clustering.spectral import PatchScatter, join, separating_projection
from common.errors import UserError
from common.settings.schema import RunConfig
from common.wire import Arrays, Update
from server.states.unsupervised import ModelState, own_groups


def solve(state: ModelState, updates: Mapping[str, Update], config: RunConfig) -> ModelState:
    """Return a state whose head is the projection of all sites' sums, or of each site's own.

    The first centroids are the axes of the projection (`axis_directions`).
    """
    own = own_groups(config)
    first = {"centroids": axis_directions(config.model.clusters, config.model.dim)}
    kept = dict(state.own)
    for name, update in updates.items() if own else ():
        parts = {"head": head_from({name: update}, config), "centroids": first}
        kept[name] = kept.get(name, {}) | {group: parts[group] for group in own if group in parts}
    head = state.head if "head" in own else head_from(updates, config)
    centroids = state.centroids if "centroids" in own else first["centroids"]
    return replace(state, head=head, centroids=centroids, own=kept)


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


def axis_directions(clusters: int, dim: int) -> np.ndarray:
    """Return K unit directions float32 [K, D] to start k-means from: both ends of the first axes.

    Codes have mean 0 and their axes are ordered by how well they separate, so that the ends of an axis lie in
    different things. There is no draw: federated and pooled k-means start, and hence end, alike. Where there
    are more clusters than ends, diagonals between pairs of axes follow.
    """
    axes = np.eye(dim)
    ends = [sign * axis for axis in axes for sign in (1.0, -1.0)]
    diagonals = (
        (first * axes[i] + second * axes[j]) / np.sqrt(2.0)
        for i, j in itertools.combinations(range(dim), 2)
        for first, second in itertools.product((1.0, -1.0), repeat=2)
    )
    found = list(itertools.islice(itertools.chain(ends, diagonals), clusters))
    assert len(found) == clusters, "checked with the settings"
    return np.array(found, dtype=np.float32)
