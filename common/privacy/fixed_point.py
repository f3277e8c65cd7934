"""How do real numbers add up exactly in a ring of 64-bit integers, where masks cancel?

A value v becomes round(v * 2^bits) modulo 2^64. Sums in the ring are those of the integers as long as the
true total stays below 2^63 in magnitude; `fraction_bits` chooses the finest grid for which that holds by
what everybody may know. A site's rounding is off by at most 2^-(bits+1) per number, whatever the others do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.uint64]

TOTAL_BITS = 62
"""Magnitudes of totals stay below 2^62, one bit under the sign: rounding can never reach over."""
MOST_FRACTION_BITS = 60


def fraction_bits(largest: float, sites: int) -> int:
    """Return how many binary digits after the point fit, if no site sends more than ``largest``."""
    if not (math.isfinite(largest) and largest > 0 and sites > 0):
        raise ValueError(f"{sites} sites with values up to {largest}; expected positive numbers")
    return min(MOST_FRACTION_BITS, TOTAL_BITS - math.ceil(math.log2(largest * sites)))


def digits_of(bits: Mapping[str, int], name: str) -> int:
    """Return the digits of one array from those of its kind: by ``group/key``, else by ``group``."""
    return int(bits[name] if name in bits else bits[name.partition("/")[0]])


def encode(values: NDArray[np.float64], bits: int, sites: int) -> Ring:
    """Turn one site's values into ring elements.

    Raises ValueError where one is not finite, or so large that ``sites`` of its kind could wrap around.
    """
    scaled = np.asarray(values, dtype=np.float64) * 2.0**bits
    limit = 2.0**TOTAL_BITS / sites
    if not (np.abs(scaled) <= limit).all():  # NaN fails this as well
        raise ValueError(f"values up to {np.abs(values).max():g} where {limit / 2.0**bits:g} is the most")
    return np.rint(scaled).astype(np.int64).view(np.uint64)


def decode(total: Ring, bits: int) -> NDArray[np.float64]:
    """Turn the total of ring elements back into numbers."""
    return total.view(np.int64).astype(np.float64) * 2.0**-bits
