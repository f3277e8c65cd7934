"""How does every site hide its numbers so that only their total can be read?

Secure aggregation after Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine
Learning" (CCS 2017), protocol 1. In the ring of 64-bit integers site u sends

    y_u = x_u + PRG(b_u) + sum over v > u of PRG(s_uv) - sum over v < u of PRG(s_uv),

with b_u its own seed and s_uv a secret that only u and v know. The pairs cancel in the total. Seeds, and the keys
behind the secrets of sites that were lost, come back from shares of which a quorum of the sites has to give
theirs, and of no site both: a single y_u stays hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from common.privacy.fixed_point import Ring
from common.privacy.keystream import subkey, words

SEED_BYTES = 32
PUBLIC_BYTES = 33  # a compressed point of P-256
SHARE_BYTES = 52  # what Flower's Shamir sharing makes of a secret of 32 bytes
FEWEST_SITES = 2


def threshold(sites: int, quorum: float) -> int:
    """Return how many of a round's sites have to stay: the quorum, more than half of them, and two at least.

    More than half, so that a server cannot get two different answers by telling halves of the sites different
    things. May exceed ``sites``: a single site cannot hide in its own total.
    """
    return max(FEWEST_SITES, sites // 2 + 1, math.ceil(quorum * sites - 1e-9))


def pair_key(agreed: bytes, session: str, one: str, other: str) -> bytes:
    """Return the key of a pair's mask from the secret that the two agreed on."""
    return subkey(agreed, "pair", session, *sorted((one, other)))


def pair_mask(key: bytes, site: str, other: str, length: int) -> Ring:
    """Return what ``site`` adds for a pair; what ``other`` adds for it is the negative of that."""
    stream = words(key, length)
    return stream if site < other else np.uint64(0) - stream


def own_mask(seed: bytes, session: str, length: int) -> Ring:
    """Return the mask that hides a site even where all of its pairs are known."""
    return words(subkey(seed, "own", session), length)


def site_mask(seed: bytes, pairs: Mapping[str, bytes], session: str, site: str, length: int) -> Ring:
    """Return everything that a site adds: its own mask and one for each pair (other site's name: key)."""
    total = own_mask(seed, session, length)
    for other, key in pairs.items():
        total = total + pair_mask(key, site, other, length)
    return total
