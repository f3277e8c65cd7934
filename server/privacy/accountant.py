"""Privacy accountant: counts the noisy sums of each site, and what they amount to (epsilon).

A release counts from the moment a site is asked: whether its reply arrived changes nothing about what it may
have told. The count lies in the run directory and never goes back, also where a run is resumed from an
earlier round. A draw of sites per round lowers the count of those that were not drawn; it is no secret (it
follows from the seed), so that nothing else is gained by it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from scipy.optimize import brentq
from scipy.special import log_ndtr

from common.errors import UserError
from common.losses.base import TRAIN
from common.settings.privacy import Privacy
from common.system.atomic import atomic_write_text

FILE = "privacy.json"


def releases_of(phase: str) -> int:
    """Return how many noisy sums a site gives away in a round of a kind (`common.losses.base`)."""
    return 2 if phase == TRAIN else 1  # steps: the head's change, and the centroid sums


def read_releases(run_dir: Path) -> dict[str, int]:
    """Return the releases by site; raises `UserError` for a file that this program did not write."""
    path = run_dir / FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["releases"]
        return {str(name): int(count) for name, count in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is broken, so that nobody knows what the sites have given away; start a run of its own."
        ) from None


def spend(run_dir: Path, names: Iterable[str], releases: int) -> None:
    """Note that these sites are asked for so many noisy sums; done before they are."""
    found = read_releases(run_dir)
    for name in names:
        found[name] = found.get(name, 0) + releases
    atomic_write_text(run_dir / FILE, json.dumps({"releases": dict(sorted(found.items()))}, indent=2))


def migrate_releases(earlier: Path, run_dir: Path) -> None:
    """Take what an earlier run directory counted into the one in which its run goes on."""
    found = read_releases(earlier)
    if found and earlier.resolve() != run_dir.resolve():
        # the larger count is never too small: privacy that is spent does not come back
        both = {name: max(found.get(name, 0), count) for name, count in read_releases(run_dir).items()}
        atomic_write_text(run_dir / FILE, json.dumps({"releases": found | both}, indent=2))


def spent(run_dir: Path, privacy: Privacy) -> float:
    """Return epsilon of the site that gave most so far; infinity in a run without noise."""
    most = max(read_releases(run_dir).values(), default=0)
    return epsilon_of(privacy.noise_multiplier, most, privacy.delta)


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
