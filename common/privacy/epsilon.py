"""Epsilon of Gaussian releases, exactly (Balle and Wang, 2018): for the server's accountant and each site's own."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr

# Epsilon above which nobody would call it a bound.
_MOST = 1e9


def delta_of(epsilon: float, noise: float) -> float:
    """Return the smallest delta at which one release of noise multiplier ``noise`` is epsilon-private.

    delta = Phi(1 / (2 z) - epsilon z) - e^epsilon Phi(-1 / (2 z) - epsilon z)
    """
    first = log_ndtr(0.5 / noise - epsilon * noise)
    second = epsilon + log_ndtr(-0.5 / noise - epsilon * noise)
    # in logarithms, since both terms underflow where epsilon is large
    return float(math.exp(first) * -math.expm1(min(second - first, 0.0)))


def epsilon_of(noise: float, releases: int, delta: float) -> float:
    """Return epsilon of ``releases`` releases with noise multiplier ``noise`` each.

    0 where nothing was released, infinity where there was no noise. Raises ValueError for a delta outside
    of (0, 1) or a negative count.
    """
    if not 0 < delta < 1 or releases < 0 or noise < 0:
        raise ValueError(f"delta {delta}, {releases} releases, noise {noise}")
    if releases == 0:
        return 0.0
    if noise == 0:
        return math.inf
    # n Gaussian releases equal one with the multiplier over the root of n (Dong, Roth and Su, 2022)
    together = noise / math.sqrt(releases)
    if delta_of(0.0, together) <= delta:
        return 0.0
    upper = 1.0
    # delta falls as epsilon grows: the root lies below the first that is private enough
    while delta_of(upper, together) > delta:
        upper *= 2.0
        if upper > _MOST:
            return math.inf
    root = brentq(lambda epsilon: delta_of(epsilon, together) - delta, 0.0, upper, xtol=1e-12, rtol=1e-12)
    return float(root)
