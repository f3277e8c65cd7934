"""The registry of centroid rules: what the sites sent, what a rule is given, and what it answers.

A new rule is one more file of this folder:

    @CENTROID_RULES.register("middle", summary="...", facts=RuleFacts(takes="centroids", single_sites=True))
    def merge_by_middle(given: RuleInput) -> Merged: ...

All rules are linear in the number of sites and depend on site names at most, never on the order of arrival.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from common.registry import Registry
from common.settings.unsupervised import Centroids


@dataclass(frozen=True)
class SiteRows:
    """What one site sent: a row for each cluster [K, D], and how many of its patches chose it [K].

    A row is the site's own centroid, or the sum of the unit codes nearest to the cluster (`RuleFacts.takes`).
    """

    rows: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Stack:
    """All sites, ordered by name: rows [N, K, D] and counts [N, K], as sent."""

    sites: tuple[str, ...]
    rows: np.ndarray
    counts: np.ndarray

    @property
    def live(self) -> NDArray[np.bool_]:
        """Which rows mean something [N, K]: some patch chose them and they have a direction.

        A row that never wins an argmax gets no gradient and stays where it was initialised; it says
        nothing about the images, yet lies far from everything, which maximin likes.
        """
        return np.asarray((self.counts > 0) & self.rows.any(axis=2))


@dataclass(frozen=True)
class RuleInput:
    """What a rule is given: the centroids sent out [K, D], what came back, and the settings.

    ``weights`` are those of the sites, by name. ``memory`` is the `Merged.state` of the round before.
    """

    current: np.ndarray
    stack: Stack
    settings: Centroids
    weights: Mapping[str, float] | None = None
    memory: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class RuleFacts:
    """What others may ask about a centroid rule.

    ``takes``: what sites send for it, centroids that they moved themselves, or sums of unit codes under the
    centroids as received. ``single_sites``: it compares single sites, so that a total over them is not enough.
    ``robust``: every site has one vote, so that a hostile minority cannot carry the result away; it merges
    directions of sums as well.
    """

    takes: Literal["centroids", "sums"]
    single_sites: bool
    robust: bool = False


@dataclass(frozen=True)
class Merged:
    """New centroids, and what happened to them.

    ``dead`` are the clusters that no site used: they keep the current centroid, except those in
    ``reseeded``, which got a new one. ``displacement`` is the Frobenius norm of the change of the unit
    rows: directions alone decide a cosine argmax, so the figure is comparable between rules. ``state`` is
    what a rule wants back in the next round.
    """

    centroids: np.ndarray
    displacement: float
    dead: tuple[int, ...] = ()
    reseeded: tuple[int, ...] = ()
    state: dict[str, np.ndarray] = field(default_factory=dict)


Rule = Callable[[RuleInput], Merged]
CENTROID_RULES: Registry[Rule, RuleFacts] = Registry("centroid rule", "server.centroids")


def merge_centroids(
    current: np.ndarray,
    sites: Mapping[str, SiteRows],
    settings: Centroids,
    weights: Mapping[str, float] | None = None,
    memory: Mapping[str, np.ndarray] | None = None,
) -> Merged:
    """Merge what the sites sent into new centroids [K, D] by the rule of the settings (see `RuleInput`).

    Raises `UserError` for an unknown rule, and naming a site whose arrays do not fit.
    """
    rule = CENTROID_RULES.get(settings.merge)
    return rule(RuleInput(current, stack_sites(sites, current), settings, weights, memory or {}))


def stack_sites(sites: Mapping[str, SiteRows], current: np.ndarray) -> Stack:
    """Bring the sites into one order, by name; raises `UserError` naming a site that does not fit."""
    if not sites:
        raise UserError("Cannot merge centroids of no site at all; at least one site has to answer.")
    names = tuple(sorted(sites))
    for name in names:
        sent = sites[name]
        if sent.rows.shape != current.shape or sent.counts.shape != current.shape[:1]:
            raise UserError(
                f"Site '{name}' sent rows {sent.rows.shape} with counts {sent.counts.shape}; "
                f"expected {current.shape} with {current.shape[:1]}."
            )
        if not np.isfinite(sent.rows).all() or sent.counts.min(initial=0) < 0:
            raise UserError(
                f"Rows of site '{name}' are not finite or their counts are negative; leave the site out."
            )
    return Stack(
        names,
        np.stack([sites[name].rows for name in names]),
        np.stack([sites[name].counts for name in names]),
    )


def directions(rows: np.ndarray) -> NDArray[np.float64]:
    """Return the rows divided by their length, in float64; a zero row stays zero."""
    values = rows.astype(np.float64)
    # scaled by the largest entry first, so that squares of tiny and huge rows neither underflow nor overflow
    scale = np.abs(values).max(axis=-1, keepdims=True, initial=0.0)
    values = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    np.divide(values, length, out=values, where=length > 0)
    return np.asarray(values)


def displacement(current: np.ndarray, new: np.ndarray) -> float:
    """Return by how much the directions of the centroids changed (see `Merged`)."""
    return float(np.linalg.norm(directions(new) - directions(current)))
