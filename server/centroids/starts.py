"""Several starts of k-means side by side: fits each, keeps the most compact, joins its clusters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.clustering.linkage import join_clusters
from common.settings.schema import RunConfig
from server.centroids.base import Rule, RuleInput, SiteRows, directions, stack_sites


@dataclass(frozen=True)
class Fitted:
    """All starts after one more pass [R, M, D], the mean cosine of each before it [R], and the groups of the best."""

    starts: np.ndarray
    mean_cosines: np.ndarray
    best: int
    groups: np.ndarray


def pass_of_starts(
    current: np.ndarray,
    sites: Mapping[str, SiteRows],
    cosines: Mapping[str, np.ndarray],
    rule: Rule,
    config: RunConfig,
) -> Fitted:
    """Take one pass of k-means for every start, from the sums that sites took under all of them.

    Args:
        current: starts [R, M, D] as they were sent out.
        sites: sums [R * M, D] and counts [R * M], by name.
        cosines: summed cosines of the patches of each cluster [R * M], by name.
        rule: merges the sums of one start.
        config: how many clusters stay, and the rule's settings.
    """
    starts, clusters, _ = current.shape
    fitted, reached, used = [], [], []
    for index in range(starts):
        part = slice(index * clusters, (index + 1) * clusters)
        own = {name: SiteRows(site.rows[part], site.counts[part]) for name, site in sites.items()}
        merged = rule(RuleInput(current[index], stack_sites(own, current[index]), config.centroids))
        counts = np.sum([site.counts for site in own.values()], axis=0, dtype=np.float64)
        fitted.append(merged.centroids)
        used.append(counts > 0)
        total = sum(float(cosines[name][part].sum()) for name in sorted(cosines))
        reached.append(total / max(float(np.sum(counts)), 1.0))
    best = int(np.argmax(reached))
    # a cluster without patches that moved was split off just now
    alive = used[best] | (fitted[best] != current[best]).any(axis=1)
    groups = join_clusters(directions(fitted[best]), config.fitted_clusters, alive)
    return Fitted(np.stack(fitted), np.array(reached), best, groups)
