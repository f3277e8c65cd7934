"""Secure aggregation on a site: numbers in a ring of integers, and masks that cancel in the total.

After Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017),
protocol 1, with the sparse graph of Bell et al. (CCS 2020). In the ring of 64-bit integers site u sends

    y_u = x_u + PRG(b_u) + sum over v > u of PRG(s_uv) - sum over v < u of PRG(s_uv),

with b_u its own seed, v its neighbors, and s_uv a secret that only u and v know. The pairs cancel in the total. Seeds,
and the keys behind the secrets of sites that were lost, come back from shares of which enough sites have to give
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
# a piece that stays in the processor's cache: eight times as fast as whole vectors that are made anew
_PIECE_WORDS = 1 << 13
_ZEROS = bytes(8 * _PIECE_WORDS)

Ring = NDArray[np.uint64]


def subkey(key: bytes, *purpose: str) -> bytes:
    """Return a key for one purpose: the same secret never gives the same stream twice."""
    text = "\x1f".join(purpose).encode()
    return hashlib.blake2b(text, key=key, digest_size=KEY_BYTES).digest()


def add_words(total: Ring, key: bytes, subtract: bool = False) -> None:
    """Add the stream of a key to a vector in place, or take it off; the stream is the same on every machine.

    Raises ValueError for a key of another length or more words than one key may give.
    """
    if len(key) != KEY_BYTES or len(total) > _MOST_WORDS:
        raise ValueError(f"a key of {len(key)} bytes for {len(total)} words; expected {KEY_BYTES} bytes")
    nonce = bytes(16)  # every key is used once
    cipher = Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor()
    buffer = bytearray(len(_ZEROS))
    stream = np.frombuffer(buffer, dtype="<u8")
    change = np.subtract if subtract else np.add
    for start in range(0, len(total), _PIECE_WORDS):
        part = total[start : start + _PIECE_WORDS]
        cipher.update_into(_ZEROS, buffer)
        change(part, stream[: len(part)], out=part)


def words(key: bytes, count: int) -> Ring:
    """Return ``count`` uniform 64-bit words that follow from a key of 32 bytes (see `add_words`)."""
    found = np.zeros(count, dtype=np.uint64)
    add_words(found, key)
    return found


def normals(key: bytes, count: int) -> NDArray[np.float64]:
    """Return ``count`` draws of the standard normal law, by inversion of 63-bit uniforms below one half and a sign.

    Floats are finest near 0, so that both tails are as fine as the middle; they end at 9.1 standard deviations.
    """
    from scipy.special import ndtri  # not at import time: most commands draw no noise

    drawn = words(key, count)
    below_half = ((drawn >> np.uint64(1)).astype(np.float64) + 0.5) * 2.0**-64
    return np.asarray(ndtri(below_half) * np.where(drawn & np.uint64(1), -1.0, 1.0), dtype=np.float64)


# magnitudes of totals stay below 2^62, one bit under the sign: rounding can never reach over
TOTAL_BITS = 62
# a finer grid gives nothing: float64 holds 53 bits
MOST_FRACTION_BITS = 60
SEED_BYTES = 32  # a seed is the key of a stream
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

    Raises ValueError where one is not finite, or so large that ``sites`` of its kind could wrap around. The text
    tells no value: it goes to the server.
    """
    scaled = np.asarray(values, dtype=np.float64) * 2.0**bits
    limit = 2.0**TOTAL_BITS / sites
    if not (np.abs(scaled) <= limit).all():  # NaN fails this as well
        raise ValueError("one is not finite, or larger than the server allows for")
    return np.rint(scaled).astype(np.int64).view(np.uint64)


def from_ring(total: Ring, bits: int) -> NDArray[np.float64]:
    """Turn the total of ring elements back into numbers."""
    return total.view(np.int64).astype(np.float64) * 2.0**-bits


def fewest_together(colluders: int) -> int:
    """Return of how many sites a total is at least, so that two stay hidden in it from the server and ``colluders``."""
    return max(FEWEST_SITES, colluders + 2)


def threshold(sites: int, quorum: float, colluders: int = 0) -> int:
    """Return how many of a round's sites have to stay: the quorum, but more where some may work with the server.

    More than half of the sites and colluders together: two answers that differ would each need that many, and
    honest sites give one. May exceed ``sites``: then there is nothing to hide in.
    """
    together = (sites + colluders) // 2 + 1
    return max(fewest_together(colluders), together, math.ceil(quorum * sites - 1e-9))


def pair_key(agreed: bytes, context: str, one: str, other: str) -> bytes:
    """Return the key of a pair's mask from the secret that the two agreed on.

    ``context`` is the hash of what was asked (`common.privacy.binding`): sites that were asked different things
    have masks that do not cancel (against Pasquini et al., CCS 2022).
    """
    return subkey(agreed, "pair", context, *sorted((one, other)))


def add_pair_mask(total: Ring, key: bytes, site: str, other: str, subtract: bool = False) -> None:
    """Add to ``total`` what ``site`` adds for a pair; what ``other`` adds for it is the negative of that."""
    add_words(total, key, (site > other) is not subtract)


def add_own_mask(total: Ring, seed: bytes, session: str, subtract: bool = False) -> None:
    """Add the mask that hides a site even where all of its pairs are known."""
    add_words(total, subkey(seed, "own", session), subtract)
