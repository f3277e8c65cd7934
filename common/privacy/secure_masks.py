"""Secure aggregation on a site: numbers in a ring of integers, and masks that cancel in the total.

After Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017),
protocol 1. In the ring of 64-bit integers site u sends

    y_u = x_u + PRG(b_u) + sum over v > u of PRG(s_uv) - sum over v < u of PRG(s_uv),

with b_u its own seed and s_uv a secret that only u and v know. The pairs cancel in the total. Seeds, and the keys
behind the secrets of sites that were lost, come back from shares of which a quorum of the sites has to give
theirs, and of no site both: a single y_u stays hidden.

A value v enters the ring as round(v * 2^bits) modulo 2^64. Sums in the ring are those of the integers as long as
the true total stays below 2^63 in magnitude; `fraction_bits` chooses the finest grid for which that holds by
what everybody may know. A site's rounding is off by at most 2^-(bits+1) per number, whatever the others do.

PRG is a keystream, which noise comes from as well. It has to be unpredictable to somebody who sees most of it, hence a
stream cipher (ChaCha20, RFC 8439): numpy's generators are not meant to hide their state, and Flower's own
``pseudo_rand_gen`` folds its seed to 32 bits, which can be tried out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

KEY_BYTES = 32  # what ChaCha20 takes
_BLOCK = 64  # bytes of one ChaCha20 block
_MOST_WORDS = ((1 << 32) * _BLOCK) // 8  # the block counter has 32 bits


def subkey(key: bytes, *purpose: str) -> bytes:
    """Return a key for one purpose: the same secret never gives the same stream twice."""
    text = "\x1f".join(purpose).encode()
    return hashlib.blake2b(text, key=key, digest_size=KEY_BYTES).digest()


def words(key: bytes, count: int) -> NDArray[np.uint64]:
    """Return ``count`` uniform 64-bit words that follow from a key of 32 bytes, the same on every machine.

    Raises ValueError for a key of another length or more words than one key may give.
    """
    if len(key) != KEY_BYTES or count > _MOST_WORDS:
        raise ValueError(f"a key of {len(key)} bytes for {count} words; expected {KEY_BYTES} bytes")
    nonce = bytes(16)  # every key is used once
    stream = Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor().update(bytes(8 * count))
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64)


def normals(key: bytes, count: int) -> NDArray[np.float64]:
    """Return ``count`` draws of the standard normal law, by inversion of 52-bit uniforms strictly in (0, 1).

    Tails end at 8.2 standard deviations (probability 2e-16).
    """
    from scipy.special import ndtri  # not at import time: most commands draw no noise

    uniform = ((words(key, count) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return np.asarray(ndtri(uniform), dtype=np.float64)


Ring = NDArray[np.uint64]

# magnitudes of totals stay below 2^62, one bit under the sign: rounding can never reach over
TOTAL_BITS = 62
# a finer grid gives nothing: float64 holds 53 bits
MOST_FRACTION_BITS = 60
SEED_BYTES = 32  # a seed is the key of a stream
PUBLIC_BYTES = 33  # a compressed point of P-256
SHARE_BYTES = 52  # what Flower's Shamir sharing makes of a secret of 32 bytes
FEWEST_SITES = 2  # the total of a single site is its own update


def fraction_bits(largest: float, sites: int) -> int:
    """Return how many binary digits after the point fit, if no site sends more than ``largest``."""
    if not (math.isfinite(largest) and largest > 0 and sites > 0):
        raise ValueError(f"{sites} sites with values up to {largest}; expected positive numbers")
    return min(MOST_FRACTION_BITS, TOTAL_BITS - math.ceil(math.log2(largest * sites)))


def digits_of(bits: Mapping[str, int], name: str) -> int:
    """Return the digits of one array from those of its kind: by ``group/key``, else by ``group``."""
    return int(bits[name] if name in bits else bits[name.partition("/")[0]])


def to_ring(values: NDArray[np.float64], bits: int, sites: int) -> Ring:
    """Turn one site's values into ring elements.

    Raises ValueError where one is not finite, or so large that ``sites`` of its kind could wrap around.
    """
    scaled = np.asarray(values, dtype=np.float64) * 2.0**bits
    limit = 2.0**TOTAL_BITS / sites
    if not (np.abs(scaled) <= limit).all():  # NaN fails this as well
        raise ValueError(f"values up to {np.abs(values).max():g} where {limit / 2.0**bits:g} is the most")
    return np.rint(scaled).astype(np.int64).view(np.uint64)


def from_ring(total: Ring, bits: int) -> NDArray[np.float64]:
    """Turn the total of ring elements back into numbers."""
    return total.view(np.int64).astype(np.float64) * 2.0**-bits


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
