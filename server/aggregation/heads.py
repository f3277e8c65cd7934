"""Head aggregation rules: merges the heads of many sites into one.

A head is a dict of arrays. All rules are pure functions of ``{site name: head}``; they compute in float64, give every
array back in its own dtype, and depend on site names at most, never on the order of arrival. Names and meaning of the
robust rules follow Flower's strategies (FedMedian, FedTrimmedAvg, Krum, MultiKrum). A new rule is one more file of
this folder that registers with `HEAD_RULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from common.registry import Registry
from common.settings.federation import Aggregation
from common.wire import Arrays, Update


class TooFewSites(UserError):
    """A rule needs more sites than answered; the round does not count."""


Heads = Mapping[str, Mapping[str, np.ndarray]]

# Shape and dtype of every array, by name.
_Layout = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]

_BLOCK = 1 << 22  # numbers that a robust rule holds in float64 at once: 32 MiB


@dataclass(frozen=True)
class Aggregate:
    """The merged head, and the names of the sites that entered it (sorted)."""

    arrays: Arrays
    sites: tuple[str, ...]


def site_weights(updates: Mapping[str, Update], settings: Aggregation) -> dict[str, float]:
    """Return each site's weight in the average: its images, its batches (as the FUSS code does), or 1."""
    if settings.weights == "uniform":
        return dict.fromkeys(updates, 1.0)
    return {name: float(int(update.facts[settings.weights])) for name, update in updates.items()}


@dataclass(frozen=True)
class HeadFacts:
    """What others may ask about a head rule.

    ``single_sites``: it compares single sites, so that a total over them is not enough.
    ``weighted``: it believes the sites' weights; ``picks``: it picks whole sites, and for all that they trained.
    ``fewest``: how many sites it needs under some settings.
    """

    single_sites: bool = True
    weighted: bool = False
    picks: bool = False
    fewest: Callable[[Aggregation], int] = lambda settings: 1


HeadRule = Callable[[Heads, Mapping[str, float], Aggregation], Aggregate]
HEAD_RULES: Registry[HeadRule, HeadFacts] = Registry("aggregation rule", "server.aggregation")


def aggregate(updates: Heads, weights: Mapping[str, float], settings: Aggregation) -> Aggregate:
    """Merge the sites' heads by the rule of the settings.

    Weights count for the weighted rules alone; a robust rule cannot believe them for choosing, since a
    hostile site would simply claim a large one.
    """
    return HEAD_RULES.get(settings.rule)(updates, weights, settings)


def weighted_mean(updates: Heads, weights: Mapping[str, float] | None = None) -> Arrays:
    """Return the weighted mean over sites (FedAvg); equal weights where none are given.

    Summed in float64 in the order of the sites' names, which makes the result independent of who answered first.
    A site of weight 0 is checked but does not count. Integers are rounded half to even; they are exact up to 2^53.
    Raises `UserError` naming a site whose arrays differ from the first one's, are not finite, or weigh less than 0.
    """
    sites, layout = _check(updates)
    share = {site: 1.0 if weights is None else weights[site] for site in sites}
    for site, weight in share.items():
        if not (np.isfinite(weight) and weight >= 0):
            raise UserError(f"The weight of site '{site}' is {weight}; expected a finite number, 0 or more.")
    # exact, whatever the order
    total = math.fsum(share.values())
    if total == 0:
        raise UserError(
            f"Cannot average {len(sites)} sites whose weights are all 0; at least one site with images has to answer."
        )
    merged: Arrays = {}
    for name, (shape, dtype) in layout.items():
        summed = np.zeros(shape)
        for site, weight in share.items():
            summed += updates[site][name] * np.float64(weight)
        merged[name] = _cast(summed / total, dtype).reshape(shape)
    return merged


@HEAD_RULES.register(
    "mean",
    summary="weighted mean over the sites (FedAvg); one hostile site can carry it away",
    facts=HeadFacts(single_sites=False, weighted=True),
)
def _mean(updates: Heads, weights: Mapping[str, float], settings: Aggregation) -> Aggregate:
    return Aggregate(weighted_mean(updates, weights), tuple(sorted(updates)))


@HEAD_RULES.register("median", summary="median of every number over the sites, unweighted", facts=HeadFacts())
def _median(updates: Heads, weights: Mapping[str, float], settings: Aggregation) -> Aggregate:
    """Source: Yin et al., ICML 2018."""
    return _per_coordinate(updates, lambda values: np.median(values, axis=0))


@HEAD_RULES.register(
    "trimmed-mean",
    summary="mean of every number without its smallest and largest values (aggregation.trim)",
    facts=HeadFacts(),
)
def _trimmed_mean(updates: Heads, weights: Mapping[str, float], settings: Aggregation) -> Aggregate:
    """Unweighted (Yin et al., ICML 2018). Nothing is cut where int(trim * sites) is 0, as in Flower."""
    cut = int(settings.trim * len(updates))

    def mean_of_the_middle(values: NDArray[np.float64]) -> NDArray[np.float64]:
        values.sort(axis=0)  # the sum then has one fixed order
        return np.asarray(values[cut : len(values) - cut].mean(axis=0))

    return _per_coordinate(updates, mean_of_the_middle)


@HEAD_RULES.register(
    "krum",
    summary="the one site that lies closest to its neighbours (aggregation.malicious)",
    facts=HeadFacts(picks=True, fewest=lambda settings: 2 * settings.malicious + 3),
)
def _krum(updates: Heads, weights: Mapping[str, float], settings: Aggregation) -> Aggregate:
    return _closest(updates, settings.malicious, 1)


@HEAD_RULES.register(
    "multi-krum",
    summary="weighted mean of the sites that lie closest to their neighbours (aggregation.keep)",
    facts=HeadFacts(
        weighted=True,
        picks=True,
        fewest=lambda settings: max(2 * settings.malicious + 3, settings.keep),
    ),
)
def _multi_krum(updates: Heads, weights: Mapping[str, float], settings: Aggregation) -> Aggregate:
    keep = settings.keep or len(updates) - settings.malicious
    return _closest(updates, settings.malicious, keep, weights)


def krum_scores(updates: Heads, malicious: int) -> dict[str, float]:
    """Return for every site the sum of squared distances to its n - malicious - 2 nearest other sites.

    Source: Blanchard et al., NeurIPS 2017. Raises `UserError` unless n >= 2 * malicious + 3, below which
    the rule promises nothing.
    """
    sites, layout = _check(updates)
    count = len(sites)
    if count < 2 * malicious + 3:
        raise TooFewSites(
            f"Krum against {malicious} hostile sites needs at least {2 * malicious + 3} sites but {count} "
            "answered; lower aggregation.malicious or ask more sites."
        )
    squared = np.zeros((count, count))
    for name in layout:
        for _, values in _blocks(updates, sites, name):
            norms = np.einsum("ij,ij->i", values, values)
            # of all pairs at once; rounding may make it slightly negative
            squared += norms[:, None] + norms[None, :] - 2.0 * (values @ values.T)
    np.maximum(squared, 0.0, out=squared)
    np.fill_diagonal(squared, np.inf)  # a site is not its own neighbour
    nearest = np.sort(squared, axis=1)[:, : count - malicious - 2]
    return dict(zip(sites, nearest.sum(axis=1).tolist(), strict=True))


def _closest(
    updates: Heads, malicious: int, keep: int, weights: Mapping[str, float] | None = None
) -> Aggregate:
    """Return the weighted mean of the ``keep`` sites with the lowest Krum scores; ties go to the first name."""
    scores = krum_scores(updates, malicious)
    if keep > len(scores):
        raise TooFewSites(
            f"Multi-Krum shall keep {keep} sites but {len(scores)} answered; lower aggregation.keep."
        )
    chosen = sorted(sorted(scores, key=lambda site: (scores[site], site))[:keep])
    return Aggregate(weighted_mean({site: updates[site] for site in chosen}, weights), tuple(chosen))


def _check(updates: Heads) -> tuple[list[str], _Layout]:
    """Return the site names in order, and shape and dtype of the arrays that all sites sent, by name.

    Raises `UserError` naming site and array that cannot be averaged, differ from the first site's or are not finite.
    """
    if not updates:
        raise UserError("Cannot merge heads of no site at all; at least one site has to answer.")
    sites = sorted(updates)
    first = updates[sites[0]]
    for name, array in first.items():
        if array.dtype.kind not in "fiu":
            raise UserError(
                f"Array '{name}' of site '{sites[0]}' has type {array.dtype}; "
                "only floats and integers can be merged."
            )
    layout = {name: (first[name].shape, first[name].dtype) for name in sorted(first)}
    for site in sites:
        arrays = updates[site]
        if set(arrays) != set(layout):
            differing = ", ".join(sorted(set(arrays) ^ set(layout)))
            raise UserError(
                f"Site '{site}' sent other arrays than the first site; they differ in: {differing}."
            )
        for name, (shape, dtype) in layout.items():
            array = arrays[name]
            if array.shape != shape or array.dtype != dtype:
                raise UserError(
                    f"Array '{name}' of site '{site}' is {array.dtype} {array.shape}; expected {dtype} {shape}."
                )
            if dtype.kind == "f" and not np.isfinite(array).all():
                raise UserError(
                    f"Array '{name}' of site '{site}' holds values that are not finite; leave the site out."
                )
    return sites, layout


def _blocks(updates: Heads, sites: list[str], name: str) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Cut one array into runs of numbers; yield each run of all sites as [sites, run] in float64."""
    flat = [np.ravel(updates[site][name]) for site in sites]
    # memory stays the same for any number of sites
    run = max(1, _BLOCK // len(sites))
    for start in range(0, flat[0].size, run):
        part = slice(start, start + run)
        yield part, np.stack([values[part] for values in flat]).astype(np.float64)


def _per_coordinate(updates: Heads, rule: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Aggregate:
    """Apply a rule [sites, numbers] -> [numbers] to all arrays, run by run."""
    sites, layout = _check(updates)
    merged: Arrays = {}
    for name, (shape, dtype) in layout.items():
        result = np.empty(math.prod(shape), dtype=dtype)
        for part, values in _blocks(updates, sites, name):
            result[part] = _cast(rule(values), dtype)
        merged[name] = result.reshape(shape)
    return Aggregate(merged, tuple(sites))


def _cast(values: NDArray[np.float64], dtype: np.dtype[Any]) -> np.ndarray:
    """Return float64 results in the dtype of their array: integers are rounded half to even, not cut off."""
    return np.asarray(np.rint(values) if dtype.kind != "f" else values).astype(dtype)
