"""The mean centroid rule: averages the rows index by index."""

from __future__ import annotations

import numpy as np

from server.aggregation.heads import weighted_mean
from server.centroids.base import CENTROID_RULES, Merged, RuleFacts, RuleInput, displacement


@CENTROID_RULES.register(
    "mean",
    summary="weighted mean of the rows with its index, as federated averaging does",
    facts=RuleFacts(takes="centroids", single_sites=False),
)
def merge_mean(given: RuleInput) -> Merged:
    """Return the mean of the raw rows index by index; counts are ignored.

    Weighted by site, e.g. by images; equal without weights. Rows that nobody used are averaged like the
    others, and named as dead.
    """
    stack = given.stack
    rows = {site: {"rows": stack.rows[i]} for i, site in enumerate(stack.sites)}
    new = weighted_mean(rows, given.weights)["rows"].astype(given.current.dtype)
    # named, so that a run tells of clusters that nobody uses
    dead = np.flatnonzero(stack.counts.sum(axis=0) == 0)
    return Merged(new, displacement(given.current, new), tuple(dead.tolist()))
