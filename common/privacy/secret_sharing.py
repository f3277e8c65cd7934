"""Secret sharing: a secret in parts of which so many give it back, and fewer tell nothing (Shamir 1979).

Arithmetic is modulo a prime just above 2^256, so that every secret of 32 bytes is a number below it. Weights of
Lagrange's formula depend on who gives a share, not on the secret: they are computed once for all secrets whose shares
come from the same places.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import lru_cache

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split_secret(secret: bytes, needed: int, holders: int) -> list[bytes]:
    """Return shares of a secret of 32 bytes for places 1 to ``holders``; ``needed`` of them give it back."""
    if len(secret) != SECRET_BYTES or not 0 < needed <= holders:
        raise ValueError(f"{len(secret)} bytes in {holders} shares of which {needed} are needed")
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(needed - 1))]
    shares = []
    for place in range(1, holders + 1):
        value = 0
        for coefficient in reversed(coefficients):  # Horner's rule
            value = (value * place + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES, "big"))
    return shares


@lru_cache(maxsize=4096)
def lagrange_weights(places: tuple[int, ...]) -> tuple[int, ...]:
    """Return by how much the shares at these places (from 1, all different) count in the secret."""
    numerator, denominators = 1, []
    for place in places:
        numerator = numerator * place % PRIME
        product = place
        for other in places:
            if other != place:
                product = product * (other - place) % PRIME
        denominators.append(product)
    # one inversion for all of them: products of those before and of those behind (Montgomery 1987)
    before = [1]
    for value in denominators:
        before.append(before[-1] * value % PRIME)
    inverse = pow(before[-1], -1, PRIME)
    weights = []
    for value, product in zip(reversed(denominators), reversed(before[:-1]), strict=True):
        weights.append(numerator * inverse * product % PRIME)
        inverse = inverse * value % PRIME
    return tuple(reversed(weights))


def combine_shares(shares: Sequence[bytes], places: Sequence[int]) -> bytes:
    """Return the secret; raises ValueError where shares make no secret. Wrong ones may make another secret."""
    weights = lagrange_weights(tuple(places))
    pairs = zip(shares, weights, strict=True)
    value = sum(int.from_bytes(share, "big") * weight for share, weight in pairs) % PRIME
    if value >> (8 * SECRET_BYTES):
        raise ValueError("the shares make no secret of 32 bytes")
    return value.to_bytes(SECRET_BYTES, "big")
