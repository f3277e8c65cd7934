"""Totals with noise, cleaned so that merge rules can use them.

Nothing here looks at data again: whatever is done to a private total leaves it as private as it was. Negative counts,
and sums longer than their counts, are noise by their very form; they are cut off at the level that noise alone
reaches. A closed form does the same to its own sums (`ClosedForm.denoise`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common import wire
from common.losses.base import clipping_bound, closed_form
from common.privacy.packed_sums import PackedSums
from common.settings.privacy import Privacy
from common.settings.schema import RunConfig


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


def clean_groups(noisy: NoisyTotal, config: RunConfig) -> wire.Groups:
    """Return the groups of the update that stands for all sites."""
    privacy, closed = config.privacy, closed_form(config)
    groups: wire.Groups = {}
    for name in ("head", "shared"):
        if arrays := noisy.group(name):
            groups[name] = {key: (value / noisy.sites).astype(np.float32) for key, value in arrays.items()}
    if sums := noisy.group("sums"):
        scale = noisy.patches * noisy.images / noisy.units(privacy)  # back to numbers of patches
        deviation = noisy.deviation * privacy.clip_sums * scale
        groups["sums"] = clean_sums(
            scale * sums["sums"], scale * sums["counts"], deviation, privacy.minimum_count
        )
    if closed is not None and (sums := noisy.group(closed.kind)):
        patches, deviation = noisy.images * noisy.patches, noisy.deviation * clipping_bound(config)
        groups[closed.kind] = closed.denoise(sums, noisy.units(privacy), patches, deviation)
    return groups


def clean_sums(
    sums: NDArray[np.float64], counts: NDArray[np.float64], deviation: float, minimum: float
) -> dict[str, np.ndarray]:
    """Return sums [K, D] and counts [K] in which clusters that noise alone could have made are empty.

    A vector of D normal numbers is longer than sqrt(D) + 2 standard deviations in less than 3 % of cases.
    Counts are raised to the length of their sum, below which no count can be.
    """
    lengths = np.linalg.norm(sums, axis=1)
    # at least one patch: below, a direction would be noise
    heard = (lengths > deviation * (np.sqrt(sums.shape[1]) + 2)) & (counts >= max(minimum, 1))
    return {
        "sums": np.where(heard[:, None], sums, 0.0),
        "counts": np.where(heard, np.maximum(counts, lengths), 0.0),
    }
