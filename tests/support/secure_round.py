"""A round of secure sums as the server runs it, over `Sites`: sites that spoil sums are searched and left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from common.privacy.secure_masks import fewest_together
from server.privacy.group_search import GroupSum, SoundSums, Suspects, sound_sums
from server.privacy.number_range import beyond_range
from tests.support.secure_sites import Sites

LARGEST = {"x": 8.0}  # of the numbers of `values_of`


@dataclass
class Round:
    """What came of a round: the total over ``stayed``, and why others are left out."""

    total: np.ndarray | None
    stayed: set[str]
    refused: dict[str, str]
    found: SoundSums = field(default_factory=SoundSums)


def secure_round(sites: Sites, suspects: Suspects | None = None) -> Round:
    """Ask all sites for their sum, as `server.privacy.totals.exchange_totals` does."""
    suspects = Suspects() if suspects is None else suspects

    def ask(names: Sequence[str], attempt: int) -> GroupSum:
        said = replace(sites, label=f"{sites.label}.{attempt}", refused=sites.refused)
        found = said.total(list(names))
        if found.vector is None:
            return GroupSum(None, blamed=frozenset(found.blamed))
        totals = found.decoded({"x/x": (5,)})
        if beyond_range(totals, LARGEST, len(found.replies)):
            return GroupSum(None, found.replies, spoiled=True)
        return GroupSum(totals, found.replies, found.needed)

    colluders = sites.settings.privacy.colluders
    names = sorted(sites.values.keys() - suspects.barred.keys())
    seed = f"{sites.number}"
    found = sound_sums(ask, names, fewest_together(colluders), seed, trusting=colluders == 0)
    suspects.narrow(found.bad)
    stayed = {name for group in found.good for name in group.replies}
    total = sum(group.totals["x/x"] for group in found.good if group.totals) if stayed else None
    return Round(total, stayed, dict(sites.refused), found)  # type: ignore[arg-type]
