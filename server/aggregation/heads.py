"""How do the heads of many sites become one head?

A head is a dict of arrays. All rules are pure functions of ``{site name: head}`` (or, for the streaming
mean, of one head at a time); they compute in float64, give every array back in its own dtype, and depend
on site names at most, never on the order of arrival. Names and meaning of the robust rules follow
Flower's strategies (FedMedian, FedTrimmedAvg, Krum, MultiKrum).

Memory: the mean needs a constant amount (`StreamingMean`); the robust rules have to see all sites at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from common.settings.schema import Aggregation
from server.aggregation.exact_sum import ExactSum

Arrays = dict[str, np.ndarray]
Updates = Mapping[str, Mapping[str, np.ndarray]]

Layout = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Shape and dtype of every array, by name."""

Weighting = Literal["images", "batches", "uniform"]


_BLOCK = 1 << 22  # numbers that a robust rule holds at once


@dataclass(frozen=True)
class Aggregate:
    """The merged head, and the names of the sites that entered it (sorted)."""

    arrays: Arrays
    sites: tuple[str, ...]


def site_weight(how: Weighting, num_images: int, num_batches: int) -> float:
    """Return the weight of one site: its images, its batches (as the FUSS code does), or 1."""
    if how == "uniform":
        return 1.0
    return float(num_images if how == "images" else num_batches)


class StreamingMean:
    """Weighted mean of heads that are added one after another and then forgotten.

    The sums are exact (`ExactSum`), so the result has the same bits for every order of `add`, and memory
    is that of a few heads for 10 sites as for 10,000. Integer arrays are averaged in exact rational
    arithmetic and rounded once, half to even; they never pass through a float.
    """

    def __init__(self, like: Mapping[str, np.ndarray] | None = None) -> None:
        """Expect arrays as in ``like``; without it, as those of the first site that is added."""
        self.count = 0
        self._weight = Fraction(0)
        self._layout: Layout = {}
        if like is not None:
            self._prepare(_layout("the server", like))

    def _prepare(self, layout: Layout) -> None:
        self._layout = layout
        self._floats = ExactSum((sum(_size(shape) for shape, dtype in layout.values() if dtype.kind == "f"),))
        self._integers: dict[str, NDArray[np.object_]] = {
            name: np.full(shape, Fraction(0), dtype=object)
            for name, (shape, dtype) in layout.items()
            if dtype.kind != "f"
        }

    def add(self, site: str, arrays: Mapping[str, np.ndarray], weight: float = 1.0) -> None:
        """Add one site's head; a site of weight 0 is checked but does not count.

        Raises `UserError` naming the site if its arrays do not look as expected, are not finite, or its
        weight is negative; nothing has been added then.
        """
        _check_weight(site, weight)
        layout = self._layout or _layout(site, arrays)
        _check_layout(site, arrays, layout)
        if not self._layout:
            self._prepare(layout)
        parts = [np.ravel(arrays[n]) for n, (_, dtype) in self._layout.items() if dtype.kind == "f"]
        terms = np.concatenate(parts, dtype=np.float64) if parts else np.zeros(0)
        terms *= weight
        try:
            self._floats.add(terms)
        except ValueError as error:
            raise UserError(f"The arrays of site '{site}' cannot be averaged: {error}.") from None
        for name, total in self._integers.items():
            self._integers[name] = np.asarray(total + arrays[name].astype(object) * Fraction(weight))
        self._weight += Fraction(weight)
        self.count += 1

    def result(self) -> Arrays:
        """Return the mean of what was added so far; raises `UserError` if the weights add up to nothing."""
        if self._weight == 0:
            given = f"{self.count} sites whose weights are all 0" if self.count else "no site at all"
            raise UserError(f"Cannot average {given}; at least one site with images has to answer.")
        mean = self._floats.value() / float(self._weight)
        merged: Arrays = {}
        start = 0
        for name, (shape, dtype) in self._layout.items():
            if dtype.kind == "f":
                stop = start + _size(shape)
                merged[name] = mean[start:stop].reshape(shape).astype(dtype)
                start = stop
            else:
                rounded = [round(total / self._weight) for total in np.ravel(self._integers[name])]
                merged[name] = np.array(rounded, dtype=dtype).reshape(shape)
        return merged

    @property
    def nbytes(self) -> int:
        """Memory held between two calls of `add`, in bytes (float part)."""
        return self._floats.nbytes if self._layout else 0


def weighted_mean(updates: Updates, weights: Mapping[str, float] | None = None) -> Arrays:
    """Return the weighted mean over sites (FedAvg); equal weights where none are given."""
    mean = StreamingMean()
    for site in sorted(updates):
        mean.add(site, updates[site], 1.0 if weights is None else weights[site])
    return mean.result()


def ordered_mean(updates: Updates, weights: Mapping[str, float] | None = None) -> Arrays:
    """Return the weighted mean over sites like `weighted_mean`, summed in float64 in the order of their names.

    For whole networks: the order alone makes the result independent of who answered first, and a sum of
    millions of numbers needs a tenth of the time of an exact one. Raises `UserError` like `StreamingMean`.
    """
    sites, layout = _check(updates)
    share = {site: 1.0 if weights is None else weights[site] for site in sites}
    for site, weight in share.items():
        _check_weight(site, weight)
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


def coordinate_median(updates: Updates) -> Arrays:
    """Return the median of every single number over the sites, unweighted (Yin et al., ICML 2018)."""
    return _per_coordinate(updates, lambda values: np.median(values, axis=0))


def trimmed_mean(updates: Updates, trim: float) -> Arrays:
    """Return the mean of every single number without its int(trim * sites) smallest and largest values.

    Unweighted (Yin et al., ICML 2018). With so few sites that int(trim * sites) is 0 nothing is cut, as in
    Flower. Raises `UserError` where ``trim`` would leave no site.
    """
    if not 0.0 <= trim < 0.5:
        raise UserError(
            f"A trimmed mean that cuts {trim} at either end leaves nothing; give 0 or more, below 0.5."
        )
    cut = int(trim * len(updates))

    def mean_of_the_middle(values: NDArray[np.float64]) -> NDArray[np.float64]:
        values.sort(axis=0)  # the sum then has one fixed order
        return np.asarray(values[cut : len(values) - cut].mean(axis=0))

    return _per_coordinate(updates, mean_of_the_middle)


def krum_scores(updates: Updates, malicious: int) -> dict[str, float]:
    """Return for every site the sum of squared distances to its n - malicious - 2 nearest other sites.

    Source: Blanchard et al., NeurIPS 2017. Raises `UserError` unless n >= 2 * malicious + 3, below which
    the rule promises nothing.
    """
    sites, layout = _check(updates)
    count = len(sites)
    if malicious < 0:
        raise UserError(f"The number of hostile sites is {malicious}; it cannot be negative.")
    if count < 2 * malicious + 3:
        raise UserError(
            f"Krum against {malicious} hostile sites needs at least {2 * malicious + 3} sites but {count} "
            "answered; lower aggregation.malicious or ask more sites."
        )
    squared = np.zeros((count, count))
    for name in layout:
        for _, values in _blocks(updates, sites, name):
            norms = np.einsum("ij,ij->i", values, values)
            squared += norms[:, None] + norms[None, :] - 2.0 * (values @ values.T)
    np.maximum(squared, 0.0, out=squared)
    np.fill_diagonal(squared, np.inf)  # a site is not its own neighbour
    nearest = np.sort(squared, axis=1)[:, : count - malicious - 2]
    return dict(zip(sites, nearest.sum(axis=1).tolist(), strict=True))


def krum(updates: Updates, malicious: int) -> Aggregate:
    """Return the head of the one site that lies closest to its neighbours; ties go to the first name."""
    return multi_krum(updates, malicious, keep=1)


def multi_krum(
    updates: Updates, malicious: int, keep: int = 0, weights: Mapping[str, float] | None = None
) -> Aggregate:
    """Return the weighted mean of the ``keep`` sites with the lowest Krum scores.

    ``keep`` of 0 keeps all but the ``malicious`` ones. Raises `UserError` for too few sites (see
    `krum_scores`) or if more sites shall be kept than there are.
    """
    scores = krum_scores(updates, malicious)
    wanted = keep or len(scores) - malicious
    if not 1 <= wanted <= len(scores):
        raise UserError(
            f"Multi-Krum shall keep {wanted} sites but {len(scores)} answered; lower aggregation.keep."
        )
    chosen = sorted(sorted(scores, key=lambda site: (scores[site], site))[:wanted])
    merged = weighted_mean({site: updates[site] for site in chosen}, weights)
    return Aggregate(merged, tuple(chosen))


def aggregate(updates: Updates, weights: Mapping[str, float], settings: Aggregation) -> Aggregate:
    """Merge the sites' heads by the rule of the settings.

    Weights count for ``mean`` and ``multi-krum``; a robust rule cannot believe them for choosing, since a
    hostile site would simply claim a large one.
    """
    everyone = tuple(sorted(updates))
    match settings.rule:
        case "mean":
            return Aggregate(weighted_mean(updates, weights), everyone)
        case "median":
            return Aggregate(coordinate_median(updates), everyone)
        case "trimmed-mean":
            return Aggregate(trimmed_mean(updates, settings.trim), everyone)
        case "krum":
            return krum(updates, settings.malicious)
        case "multi-krum":
            return multi_krum(updates, settings.malicious, settings.keep, weights)


def _size(shape: Iterable[int]) -> int:
    return int(np.prod(tuple(shape), dtype=np.int64))


def _check_weight(site: str, weight: float) -> None:
    if not (np.isfinite(weight) and weight >= 0):
        raise UserError(f"The weight of site '{site}' is {weight}; expected a finite number, 0 or more.")


def _layout(site: str, arrays: Mapping[str, np.ndarray]) -> Layout:
    """Return shape and dtype of every array, by name; only real numbers can be averaged."""
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise UserError(
                f"Array '{name}' of site '{site}' has type {array.dtype}; "
                "only floats and integers can be merged."
            )
    return {name: (arrays[name].shape, arrays[name].dtype) for name in sorted(arrays)}


def _check_layout(
    site: str,
    arrays: Mapping[str, np.ndarray],
    expected: Layout,
) -> None:
    """Raise `UserError` naming site and array if the arrays differ from the expected or are not finite."""
    if set(arrays) != set(expected):
        differing = ", ".join(sorted(set(arrays) ^ set(expected)))
        raise UserError(f"Site '{site}' sent other arrays than the first site; they differ in: {differing}.")
    for name, (shape, dtype) in expected.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != dtype:
            raise UserError(
                f"Array '{name}' of site '{site}' is {array.dtype} {array.shape}; expected {dtype} {shape}."
            )
        if dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(
                f"Array '{name}' of site '{site}' holds values that are not finite; leave the site out."
            )


def _check(updates: Updates) -> tuple[list[str], Layout]:
    """Return the site names in order and the common layout of their arrays."""
    if not updates:
        raise UserError("Cannot merge heads of no site at all; at least one site has to answer.")
    sites = sorted(updates)
    layout = _layout(sites[0], updates[sites[0]])
    for site in sites:
        _check_layout(site, updates[site], layout)
    return sites, layout


def _blocks(updates: Updates, sites: list[str], name: str) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Cut one array into runs of numbers; yield each run of all sites as [sites, run] in float64 (32 MiB)."""
    flat = [np.ravel(updates[site][name]) for site in sites]
    run = max(1, _BLOCK // len(sites))
    for start in range(0, flat[0].size, run):
        part = slice(start, start + run)
        yield part, np.stack([values[part] for values in flat]).astype(np.float64)


def _per_coordinate(updates: Updates, rule: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Arrays:
    """Apply a rule [sites, numbers] -> [numbers] to all arrays, run by run."""
    sites, layout = _check(updates)
    merged: Arrays = {}
    for name, (shape, dtype) in layout.items():
        result = np.empty(_size(shape), dtype=dtype)
        for part, values in _blocks(updates, sites, name):
            result[part] = _cast(rule(values), dtype)
        merged[name] = result.reshape(shape)
    return merged


def _cast(values: NDArray[np.float64], dtype: np.dtype[Any]) -> np.ndarray:
    """Return float64 results in the dtype of their array: integers are rounded half to even, not cut off."""
    return np.asarray(np.rint(values) if dtype.kind != "f" else values).astype(dtype)
