"""Secure aggregation at the server: the total over sites, no single site's part, though sites may get lost.

It passes public keys and encrypted shares on between the sites (`common.privacy.secure_masks` has the protocol,
`client.privacy.secure_site` the other side), adds up what they masked, and takes off the masks that are left: the
own masks of sites that stayed, and the pairs of sites that were lost after the shares went round.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common import wire
from common.losses.base import Shapes, clipping_bound, closed_form
from common.privacy.packed_sums import PackedSums
from common.privacy.secure_masks import (
    FEWEST_SITES,
    PUBLIC_BYTES,
    SEED_BYTES,
    SHARE_BYTES,
    Ring,
    digits_of,
    fraction_bits,
    from_ring,
    own_mask,
    pair_key,
    pair_mask,
    threshold,
)
from common.settings.schema import RunConfig
from server.transport.exchange import Payload
from server.transport.registry import SiteInfo
from server.transport.reply_checks import ReplySchema

_CURVE = ec.SECP256R1()
_SEALED_BYTES = 201  # Fernet of two shares of 52 bytes and a label of 32

# Of a head's parameter: far above any that works.
_LARGEST_WEIGHT = 2.0**10
_LARGEST_METRIC = 2.0**20
# A bound that is not used.
_LEAST = 2.0**-40
_MOST_EXPONENT = 100
# Standard deviations of noise: never reached.
_NOISE_REACH = 64.0


# Sends each site its letter by an action and returns the replies that are as expected, by name. Bytes and the reasons
# of those that are missing are the sender's business.
Post = Callable[[Mapping[str, Payload], str, ReplySchema], dict[str, wire.Update]]


@dataclass(frozen=True)
class SecureTotal:
    """The total in the ring over ``replies``, or ``None`` and the reason; ``needed`` sites had to stay."""

    vector: Ring | None
    replies: dict[str, wire.Update] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    needed: int = 0

    def decoded(self, shapes: Shapes) -> PackedSums:
        """Return the total as arrays by ``group/key``, from the ring."""
        assert self.vector is not None
        totals: PackedSums = {}
        start = 0
        for key in sorted(shapes):
            size = int(np.prod(shapes[key]))
            part = from_ring(self.vector[start : start + size], digits_of(self.bits, key))
            totals[key] = part.reshape(shapes[key])
            start += size
        return totals


def digits(sites: Mapping[str, SiteInfo], config: RunConfig, exponent: int = 0) -> dict[str, int]:
    """Return how many binary digits each kind of number gets in the ring, from what is public.

    No feature is larger than 2^``exponent`` in magnitude.
    """
    images = float(max(info.images for info in sites.values()))
    # the site with most patches bounds every entry of a sum of unit codes
    patches = images * max(info.grid[0] * info.grid[1] for info in sites.values())
    weight = 1.0 if config.aggregation.weights == "uniform" else images
    feature = 2.0**exponent
    largest = {
        "weight": weight,
        "metrics": weight * _LARGEST_METRIC,
        "head": weight * _LARGEST_WEIGHT,
        "shared": weight * _LARGEST_WEIGHT,
        "centroids": max(weight * _LARGEST_WEIGHT, patches),
        "sums": patches,
        "sums/adjacency": 2 * patches,  # two neighbors a patch, to the right and below
    }
    closed, privacy = closed_form(config), config.privacy
    if privacy.noise_multiplier:
        reach = _NOISE_REACH * privacy.noise_multiplier
        largest["head"] += reach * privacy.clip_norm
        largest["shared"] += reach * privacy.clip_norm
        largest["sums"] = (images + reach) * max(privacy.clip_sums, _LEAST)
        if closed is not None:
            largest[closed.kind] = (images + reach) * max(clipping_bound(config), _LEAST)
    elif closed is not None:
        largest |= {f"{closed.kind}/{name}": b for name, b in closed.largest(patches, feature).items()}
    rounding = 1 + 1e-6  # a sum of features that were rounded on their way
    return {kind: fraction_bits(bound * rounding, len(sites)) for kind, bound in largest.items()}


def largest_exponent(keys: Mapping[str, wire.Update]) -> int:
    """Return the power of two that no site's features exceed; raises ValueError for nonsense."""
    found = [update.facts.get("exponent") for update in keys.values()]
    if not all(isinstance(e, int) and abs(e) <= _MOST_EXPONENT for e in found):
        raise ValueError("a site does not say how large its features are")
    return max(int(str(exponent)) for exponent in found)


def secure_total(
    letters: Mapping[str, Payload],
    action: str,
    post: Post,
    *,
    length: int,
    bits: Callable[[Mapping[str, wire.Update]], Mapping[str, int]],
    scale: bool,
    session: str,
    label: str,
    quorum: float,
    weights_hash: str,
) -> SecureTotal:
    """Have each site do what its letter says by ``action``, and return the total of ``length`` numbers.

    Args:
        bits: from the sites' first answers, binary digits after the point by kind of number.
        scale: whether sites have to say how large their features are.
        session: names this sum among all of the run, as the sites do: run key, round and ``label``.
        quorum: share of the sites that have to stay (`common.privacy.secure_masks.threshold`).
    """
    said: wire.Options = {"secure.session": label}
    keys = post(
        {name: Payload({}, said | {"secure.scale": scale}) for name in letters},
        wire.SECURE_KEYS,
        ReplySchema({"secure": {"mask": (PUBLIC_BYTES,), "cipher": (PUBLIC_BYTES,)}}),
    )
    needed = threshold(len(keys), quorum)
    if len(keys) < max(needed, FEWEST_SITES):
        return _failed(f"{len(keys)} sites sent keys, {needed} are needed")
    try:
        digits = dict(bits(keys))
    except ValueError as error:
        return _failed(str(error))
    announced = {
        name: np.concatenate([u.groups["secure"]["mask"], u.groups["secure"]["cipher"]])
        for name, u in sorted(keys.items())
    }
    shares = post(
        {name: Payload({"keys": announced}, said) for name in announced},
        wire.SECURE_SHARES,
        ReplySchema({"secure": {"shares": (len(announced) - 1, _SEALED_BYTES), "commitment": (SEED_BYTES,)}}),
    )
    if len(shares) < needed:
        return _failed(f"{len(shares)} of {len(announced)} sites shared their secrets, {needed} are needed")
    # whoever is lost from here on has left masks in the others' numbers
    included = sorted(shares)
    asked: wire.Options = said | {"secure.sites": ",".join(included), "secure.bits": json.dumps(digits)}
    masked = post(
        {name: Payload(letters[name].groups, letters[name].options | asked) for name in included},
        action,
        ReplySchema({"masked": {"vector": (length,)}}, weights_hash),
    )
    if len(masked) < needed:
        return _failed(f"{len(masked)} of {len(announced)} sites sent their numbers, {needed} are needed")
    given = post(
        {
            name: Payload(
                {
                    "shares": {
                        other: _sealed(shares[other], other, name, announced)
                        for other in included
                        if other != name
                    }
                },
                said | {"secure.survivors": ",".join(sorted(masked))},
            )
            for name in masked
        },
        wire.SECURE_UNMASK,
        ReplySchema({"secure": {"shares": (len(included), SHARE_BYTES)}}),
    )
    if len(given) < needed:
        return _failed(f"{len(given)} of {len(announced)} sites helped to unmask, {needed} are needed")
    try:
        masks = _masks_left(included, masked, given, shares, announced, needed, session, length)
    except ValueError as error:
        return _failed(str(error))
    total = np.zeros(length, dtype=np.uint64)
    # the ring is exact: sums of uint64 wrap around, in any order
    for name in sorted(masked):
        total = total + masked[name].groups["masked"]["vector"].astype(np.uint64)
    return SecureTotal(total - masks, dict(sorted(masked.items())), digits, needed=needed)


def _failed(reason: str) -> SecureTotal:
    return SecureTotal(None, reason=reason)


def _sealed(
    update: wire.Update, sender: str, receiver: str, announced: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return the row of a site's encrypted shares that is for ``receiver``."""
    others = [name for name in sorted(announced) if name != sender]
    row: np.ndarray = update.groups["secure"]["shares"][others.index(receiver)]
    return row


def _masks_left(
    included: list[str],
    masked: Mapping[str, wire.Update],
    given: Mapping[str, wire.Update],
    shares: Mapping[str, wire.Update],
    announced: Mapping[str, np.ndarray],
    needed: int,
    session: str,
    length: int,
) -> Ring:
    """Return what the total still holds beside the numbers.

    Raises ValueError naming a site whose secret does not come back as it was promised.
    """
    left = np.zeros(length, dtype=np.uint64)
    # any so many shares give the secret; the first by name, so that all servers take the same
    helpers = sorted(given)[:needed]
    for position, name in enumerate(included):
        rows = [given[helper].groups["secure"]["shares"][position].tobytes() for helper in helpers]
        secret = _combined(rows)
        if name in masked:
            if hashlib.sha256(secret).digest() != shares[name].groups["secure"]["commitment"].tobytes():
                raise ValueError(f"the shares of the seed of site {name} do not fit together")
            left = left + own_mask(secret, session, length)
            continue
        # a lost site's masks with the others are still in the sum
        public = announced[name].tobytes()[:PUBLIC_BYTES]
        for other in masked:
            agreed = _agreed(secret, public, announced[other].tobytes()[:PUBLIC_BYTES], name)
            left = left + pair_mask(pair_key(agreed, session, name, other), other, name, length)
    return left


def _combined(rows: list[bytes]) -> bytes:
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares

    try:
        return combine_shares(rows)
    except ValueError:
        # an empty secret fits neither commitment nor key: the caller names the site
        return b""


def _agreed(secret: bytes, public: bytes, other: bytes, name: str) -> bytes:
    """Return what a lost site and another one agreed on, from the lost site's key as it came back."""
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key

    try:
        private = ec.derive_private_key(int.from_bytes(secret, "big"), _CURVE)
        point = serialization.PublicFormat.CompressedPoint
        if private.public_key().public_bytes(serialization.Encoding.X962, point) != public:
            raise ValueError("another key")
    except ValueError:
        raise ValueError(f"the shares of the key of lost site {name} do not fit together") from None
    peer = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, other)
    return base64.urlsafe_b64decode(generate_shared_key(private, peer))
