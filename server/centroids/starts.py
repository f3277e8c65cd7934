"""Several starts of k-means side by side: fits each, joins its clusters, and chooses one without a label.

Two figures choose, both made of sums over sites. Among starts of codes that are treated alike the medoid is kept:
the one whose clusters the others find most, by the sum of its normalized mutual information with them. How compact
clusters are does not tell good starts from bad ones. Whether codes are centered in their image is decided by how much
the clusters tell which image a patch is from. With H the entropy of the shares of the clusters over all patches, and
H_i that of image i,

    I / H = (H - mean H_i) / H

is the share of that information which is spent on telling images apart. Where it is large without centering,
clusters are kinds of images, not of things (nuclei: 0.27 to 0.39; street scenes: 0.13; retina: 0.16 to 0.19).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.clustering.linkage import join_clusters
from common.settings.schema import RunConfig
from common.wire import Arrays
from server.centroids.base import Rule, RuleInput, SiteRows, stack_sites

# clusters of fewer patches than this part of the mean go to the nearest other one before the rest is joined: an odd one
# would else be a group of its own (CamVid, worst of 18 starts: 31 from 30, mean of their three medoids 40.3 from 39.5)
LEAST_MASS = 0.5
# between the largest figure of a set that centering harms and the smallest of one that it helps
MOST_TOLD = 0.23


@dataclass(frozen=True)
class Fitted:
    """All starts after one more pass, and which of them is the model.

    centroids: [S, M, D]; groups: int64 [S, M]; mean_cosines: [S], before the pass; agreement: [S], the mean normalized
    mutual information with the other starts of the family, and told: [S], I / H, of the clusters as joined before the
    pass; best: the number of the chosen start; centered: whether its codes are.
    """

    centroids: np.ndarray
    groups: np.ndarray
    mean_cosines: np.ndarray
    agreement: np.ndarray
    told: np.ndarray
    best: int
    centered: bool


def pass_of_starts(
    current: np.ndarray, sums: Mapping[str, Arrays], images: int, rule: Rule, config: RunConfig
) -> Fitted:
    """Take one pass of k-means for every start, join the clusters of each, and choose.

    Args:
        current: centroids [S, M, D] as they were sent out, as many of each of ``config.centerings``.
        sums: what sites added up under them, by name (see `client.statistics.sums_of_starts`).
        images: of all these sites.
        rule: merges the sums of one start.
        config: how many clusters stay, and the rule's settings.
    """
    starts, clusters, _ = current.shape
    fitted, groups, reached = [], [], []
    for index in range(starts):
        part = slice(index * clusters, (index + 1) * clusters)
        own = {name: SiteRows(site["sums"][part], site["counts"][part]) for name, site in sums.items()}
        merged = rule(RuleInput(current[index], stack_sites(own, current[index]), config.centroids))
        counts = np.sum([site.counts for site in own.values()], axis=0, dtype=np.float64)
        used = counts > LEAST_MASS / clusters * counts.sum()
        fitted.append(merged.centroids)
        pairs = np.sum([site["adjacency"][index] for site in sums.values()], axis=0)
        beside = neighbors(pairs, clusters)
        groups.append(join_clusters(merged.centroids, config.fitted_clusters, used, beside))
        cosine = sum(float(sums[name]["cosines"][part].sum()) for name in sorted(sums))
        reached.append(cosine / max(float(counts.sum()), 1.0))
    told = told_of_images(
        sum(sums[name]["shares"].astype(np.float64) for name in sorted(sums)),  # type: ignore[arg-type]
        sum(sums[name]["entropies"] for name in sorted(sums)) / max(images, 1),  # type: ignore[arg-type]
    )
    overlaps = np.asarray(np.sum([sums[name]["overlaps"] for name in sorted(sums)], axis=0, dtype=np.float64))
    agreement = agreement_of(overlaps)
    best, centered = chosen_start(agreement, told, config.centerings)
    return Fitted(np.stack(fitted), np.stack(groups), np.array(reached), agreement, told, best, centered)


def neighbors(pairs: np.ndarray, clusters: int) -> np.ndarray:
    """Return the symmetric table [M, M] of neighboring patches, either way round, of its triangle [M * (M + 1) / 2]."""
    table = np.zeros((clusters, clusters), dtype=pairs.dtype)
    table[np.triu_indices(clusters)] = pairs
    return table + table.T


def agreement_of(overlaps: np.ndarray) -> np.ndarray:
    """Return the mean normalized mutual information [S] of each start with the others of its family.

    ``overlaps`` [S, R, K, K] counts patches by their clusters under both; families of R starts follow each other.
    Information is divided by the mean of both entropies (Strehl and Ghosh, 2002, with the arithmetic mean). A start
    without others agrees with none: 0.
    """
    starts, family = overlaps.shape[:2]
    found = np.zeros(starts)
    for index in range(starts):
        others = [other for other in range(family) if other != index % family]
        found[index] = np.mean([_shared_information(overlaps[index, other]) for other in others] or [0.0])
    return found


def _shared_information(table: np.ndarray) -> float:
    joint = table / max(float(table.sum()), 1.0)
    rows, columns, both = (_entropy(part) for part in (joint.sum(axis=1), joint.sum(axis=0), joint.ravel()))
    mean = (rows + columns) / 2
    return (rows + columns - both) / mean if mean > 0 else 0.0


def _entropy(portions: np.ndarray) -> float:
    used = portions[portions > 0]
    return float(-(used * np.log(used)).sum())


def told_of_images(shares: np.ndarray, entropies: np.ndarray) -> np.ndarray:
    """Return I / H [S] (see the head of this file) of shares [S, K] over all patches and mean entropies [S]."""
    portions = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1.0)
    logs = np.log(np.where(portions > 0, portions, 1.0))
    whole = -(portions * logs).sum(axis=1)
    return np.asarray(np.where(whole > 0, (whole - entropies) / np.where(whole > 0, whole, 1.0), 0.0))


def chosen_start(
    agreement: Sequence[float] | np.ndarray, told: Sequence[float] | np.ndarray, centerings: Sequence[bool]
) -> tuple[int, bool]:
    """Return the start to keep, and whether its codes are centered.

    The first family of starts is kept, unless its best one tells more of images than `MOST_TOLD` and there is another.
    """
    each = len(agreement) // len(centerings)
    family = int(np.argmax(agreement[:each]))
    if len(centerings) > 1 and told[family] > MOST_TOLD:
        return each + int(np.argmax(agreement[each:])), centerings[1]
    return family, centerings[0]
