"""Client sampling: which sites take part in a round."""

from __future__ import annotations

from collections.abc import Iterable

from common.seeds import numpy_generator


def sample_clients(names: Iterable[str], wanted: int, seed: int, number: int) -> list[str]:
    """Draw ``wanted`` sites for round ``number`` without replacement, and return them in order of name.

    0, or as many as there are, means all. Names and seed decide: node ids and arrival order play no part.
    """
    known = sorted(names)
    if not 0 < wanted < len(known):
        return known
    # a generator of its own for every round: a resumed run draws the same sites
    picked = numpy_generator(seed, "sites", number).choice(len(known), wanted, False)
    return sorted(known[index] for index in picked)
