"""Ranges of the numbers in a secure sum: how fine its grid may be, and which totals no honest sites can make."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from common.losses.base import clipping_bound, closed_form
from common.privacy.packed_sums import PackedSums
from common.privacy.secure_masks import fraction_bits
from common.settings.schema import RunConfig
from server.transport.registry import SiteInfo

# Of a head's parameter: far above any that works.
_LARGEST_WEIGHT = 2.0**10
_LARGEST_METRIC = 2.0**20
# A bound that is not used.
_LEAST = 2.0**-40
_MOST_EXPONENT = 100
# Powers of two by which one site's features may exceed those of most: more would cost the others their precision.
_MOST_ABOVE = 8
# Standard deviations of noise: never reached.
_NOISE_REACH = 64.0
# A sum of features that were rounded on their way.
_ROUNDING = 1 + 1e-6


def largest_numbers(sites: Mapping[str, SiteInfo], config: RunConfig, exponent: int = 0) -> dict[str, float]:
    """Return the largest magnitude that one site may send, by kind of number, from what is public.

    No feature is larger than 2^``exponent`` in magnitude.
    """
    images = float(max(info.images for info in sites.values()))
    # the site with most patches bounds every entry of a sum of unit codes
    patches = images * max(info.grid[0] * info.grid[1] for info in sites.values())
    weight = 1.0 if config.aggregation.weights == "uniform" else images
    feature = 2.0**exponent
    largest = {
        "weight": weight,
        "metrics": weight * _LARGEST_METRIC,
        "head": weight * _LARGEST_WEIGHT,
        "shared": weight * _LARGEST_WEIGHT,
        "centroids": max(weight * _LARGEST_WEIGHT, patches),
        "sums": patches,
        "sums/adjacency": 2 * patches,  # two neighbors a patch, to the right and below
    }
    closed, privacy = closed_form(config), config.privacy
    if privacy.noise_multiplier:
        reach = _NOISE_REACH * privacy.noise_multiplier
        largest["head"] += reach * privacy.clip_norm
        largest["shared"] += reach * privacy.clip_norm
        largest["sums"] = (images + reach) * max(privacy.clip_sums, _LEAST)
        if closed is not None:
            largest[closed.kind] = (images + reach) * max(clipping_bound(config), _LEAST)
    elif closed is not None:
        largest |= {f"{closed.kind}/{name}": b for name, b in closed.largest(patches, feature).items()}
    return {kind: bound * _ROUNDING for kind, bound in largest.items()}


def digits(largest: Mapping[str, float], sites: int) -> dict[str, int]:
    """Return how many binary digits after the point each kind of number gets in the ring."""
    return {kind: fraction_bits(bound, sites) for kind, bound in largest.items()}


def excessive_exponents(exponents: Mapping[str, int]) -> dict[str, str]:
    """Return why sites cannot be believed about the size of their features, by name.

    One that exaggerates would make the grid too coarse for the others.
    """
    if not exponents:
        return {}
    usual = sorted(exponents.values())[(len(exponents) - 1) // 2]
    return {
        name: f"it says that its features reach 2^{value}, those of most sites 2^{usual}"
        for name, value in exponents.items()
        if abs(value) > _MOST_EXPONENT or value > usual + _MOST_ABOVE
    }


def beyond_range(totals: PackedSums, largest: Mapping[str, float], sites: int) -> str | None:
    """Return which array of a total of ``sites`` sites holds a number that they cannot make, or None."""
    for key, value in totals.items():
        bound = sites * (largest[key] if key in largest else largest[key.partition("/")[0]])
        # a grid of whole numbers may round each site's up
        if not (np.abs(value) <= bound * (1 + 1e-9) + sites).all():
            return f"'{key}' is out of the range of {sites} sites"
    return None
