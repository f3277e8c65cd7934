"""Keystream: random numbers without end from a short secret.

Masks and noise have to be unpredictable to somebody who sees most of them, so they come from a stream
cipher (ChaCha20, RFC 8439) and not from a generator made for simulation: numpy's are not meant to hide
their state, and Flower's own ``pseudo_rand_gen`` folds its seed to 32 bits, which can be tried out.
"""

from __future__ import annotations

import hashlib

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

KEY_BYTES = 32
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
