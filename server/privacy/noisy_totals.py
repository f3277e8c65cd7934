"""Cleans totals with noise, so that the merge rules can use them.

Nothing here looks at data again: whatever is done to a private total leaves it as private as it was.
Negative counts, sums longer than their counts and matrices with negative eigenvalues are noise by their very
form; they are cut off at the level that noise alone reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.clustering.spectral import RELEASE_SCALES, PatchScatter, symmetric
from common.privacy.packed_sums import PackedSums
from common.settings.privacy import Privacy
from common.wire import Groups

_TINY = 1e-8


@dataclass(frozen=True)
class NoisyTotal:
    """Totals by ``group/key`` over ``sites`` sites with ``images`` images of ``patches`` patches.

    ``deviation`` is the noise on every number in units of the clipping bound of its group.
    """

    totals: PackedSums
    sites: int
    images: int
    patches: int
    deviation: float

    def group(self, name: str) -> PackedSums:
        """Return the arrays of one group."""
        prefix = f"{name}/"
        return {k.removeprefix(prefix): v for k, v in self.totals.items() if k.startswith(prefix)}

    def units(self, privacy: Privacy) -> int:
        """Return how many vectors of bounded length were added up: images, or one mean per site."""
        return self.images if privacy.unit == "image" else self.sites


def clean_groups(noisy: NoisyTotal, privacy: Privacy) -> Groups:
    """Return the groups of the update that stands for all sites."""
    groups: Groups = {}
    for name in ("head", "shared"):
        if arrays := noisy.group(name):
            groups[name] = {key: (value / noisy.sites).astype(np.float32) for key, value in arrays.items()}
    if sums := noisy.group("sums"):
        scale = noisy.patches * noisy.images / noisy.units(privacy)  # back to numbers of patches
        deviation = noisy.deviation * privacy.clip_sums * scale
        groups["sums"] = clean_sums(
            scale * sums["sums"], scale * sums["counts"], deviation, privacy.minimum_count
        )
    if scatter := noisy.group("scatter"):
        groups["scatter"] = clean_scatter(noisy, scatter, privacy).to_arrays()
    return groups


def clean_sums(
    sums: NDArray[np.float64], counts: NDArray[np.float64], deviation: float, minimum: float
) -> dict[str, np.ndarray]:
    """Return sums [K, D] and counts [K] in which clusters that noise alone could have made are empty.

    A vector of D normal numbers is longer than sqrt(D) + 2 standard deviations in less than 3 % of cases.
    Counts are raised to the length of their sum, below which no count can be.
    """
    lengths = np.linalg.norm(sums, axis=1)
    heard = (lengths > deviation * (np.sqrt(sums.shape[1]) + 2)) & (counts >= max(minimum, 1))
    return {
        "sums": np.where(heard[:, None], sums, 0.0),
        "counts": np.where(heard, np.maximum(counts, lengths), 0.0),
    }


def clean_scatter(noisy: NoisyTotal, scatter: PackedSums, privacy: Privacy) -> PatchScatter:
    """Return a scatter whose matrices have no negative eigenvalue.

    Directions in which neighbours differ by less than noise alone would (2 deviation sqrt(C), the edge of
    the semicircle law) count as different by that much: none of them may win by an accident of the noise.
    """
    units, radius = noisy.units(privacy), privacy.feature_norm
    means = {name: scatter[name] / (factor * units) for name, factor in RELEASE_SCALES.items()}
    mean, channels = means["total"], len(means["total"])
    second = symmetric(means["outer"], channels)
    covariance = _floored(second - np.outer(mean, mean), 0.0)
    deviation = noisy.deviation * privacy.clip_scatter / (RELEASE_SCALES["difference"] * units)
    edge = 2 * deviation * np.sqrt(channels)
    share = max(float(means["weight"][0]), _TINY)
    difference = _floored(symmetric(means["difference"], channels), edge)
    patches = float(noisy.images * noisy.patches)
    return PatchScatter(
        patches,
        mean * radius * patches,
        (covariance + np.outer(mean, mean)) * radius**2 * patches,
        share * patches,
        difference * radius**2 * patches,
    )


def _floored(matrix: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Return the symmetric matrix with its eigenvalues raised to ``least``."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, least)) @ vectors.T)
