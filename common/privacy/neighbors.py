"""The graph of a secure sum: with which others a site shares masks and secrets.

All with all up to 50 sites. Above, each with k others (Bell et al., "Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead", CCS 2020): a ring in random order, in which everybody is tied to the next k/2 on either
side. The order follows from the hash of the sites' fresh keys, so that sites and server need not tell each other.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

from common.privacy.secure_masks import subkey

# Up to so many sites everybody is tied to everybody.
MOST_DENSE = 50
# Of the sites, those that may be lost, and those that may work with the server; each on its own.
ENDURED = 0.25
# Chance that this is too much for the holders of any one site's secrets.
_FAILURE = 2.0**-40


@lru_cache(maxsize=256)
def degree(sites: int) -> int:
    """Return to how many others a site is tied.

    The smallest even number k with which, where a quarter of the sites is lost, more than half of every site's k + 1
    holders stay, and where a quarter works with the server, no more than half do: but for a chance of 2^-40.
    """
    if sites <= MOST_DENSE:
        return sites - 1
    from scipy.stats import hypergeom  # slow to import, and only many sites need it

    marked = int(ENDURED * sites)
    for k in range(2, sites - 1, 2):
        # the site itself holds a share; of its k neighbors more than k / 2 are lost, or collude
        if sites * hypergeom.sf(k // 2 - 1, sites - 1, marked, k) <= _FAILURE:
            return k
    return sites - 1


def share_threshold(sites: int, needed: int) -> int:
    """Return how many holders open a secret: where all hold it, as many as the sum needs; else more than half."""
    k = degree(sites)
    return needed if k == sites - 1 else (k + 1) // 2 + 1


def holders_of(names: Collection[str], seed: bytes) -> dict[str, tuple[str, ...]]:
    """Return for each site who holds shares of its secrets, in order of names: its neighbors and itself."""
    k = degree(len(names))
    if k == len(names) - 1:
        everybody = tuple(sorted(names))
        return dict.fromkeys(everybody, everybody)
    ring = sorted(names, key=lambda name: subkey(seed, "ring", name))
    found = {}
    for place, name in enumerate(ring):
        reach = range(place - k // 2, place + k // 2 + 1)
        found[name] = tuple(sorted(ring[index % len(ring)] for index in reach))
    return found
