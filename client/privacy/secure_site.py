"""Secure aggregation at a site: the server learns the total over sites and nothing of one alone.

A round has four messages (`common.privacy.secure_masks`): public keys, encrypted shares of this site's secrets for the
other sites, the masked numbers, and at last the shares that the total needs. Every message may be
handled by a new process, so secrets lie in the site's state folder, readable by its user only. Each is blanked when
its last use is over, and all are replaced in the next sum. A site answers the last message once, and never gives away
both secrets of any other site.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.site import SiteConfig
from common import wire
from common.errors import UserError
from common.privacy.packed_sums import PackedSums
from common.privacy.secure_masks import (
    SEED_BYTES,
    SHARE_BYTES,
    digits_of,
    pair_key,
    site_mask,
    threshold,
    to_ring,
)
from common.settings.schema import RunConfig
from common.system.atomic import atomic_write_bytes

_CURVE = ec.SECP256R1()  # the curve of Flower's own primitives


@dataclass
class Secrets:
    """What a site keeps during one secure sum; bytes as hex, so that the file is plain JSON."""

    session: str
    mask_key: str
    cipher_key: str
    seed: str
    keys: dict[str, list[str]] = field(
        default_factory=dict
    )  # public ones (mask, cipher) of the sites that share
    needed: int = 0  # how many of them have to stay
    own_shares: list[str] = field(default_factory=list)  # this site's, of its own seed and key
    included: list[str] = field(default_factory=list)  # sites whose masks are in the total
    answered: bool = False


def answer_keys(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Make two key pairs and a seed for one secure sum, and return the public keys.

    Where the sum is of features, whose size nobody knows beforehand, the fact ``exponent`` says below which
    power of two all of this site's lie.
    """
    mask, cipher = (ec.generate_private_key(_CURVE) for _ in range(2))
    kept = Secrets(
        _session(task), _private_hex(mask), _private_hex(cipher), secrets.token_bytes(SEED_BYTES).hex()
    )
    _save(site, kept)
    update = _reply(site, {"mask": _bytes(_public(mask)), "cipher": _bytes(_public(cipher))})
    if task.options.get("secure.scale"):
        update.facts["exponent"] = _feature_exponent(settings, site)
    return update


def answer_shares(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Share seed and mask key among all sites, each share encrypted for its receiver.

    Returns ``shares`` uint8 [sites - 1, bytes], in the order of the other sites' names. A ``commitment`` to the
    seed lets the server tell wrong shares.
    """
    from flwr.common.secure_aggregation.crypto.shamir import create_shares
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt

    kept = _load(site, task)
    if kept.keys:
        raise UserError("The server asks twice for the shares of one secure sum; a site gives them once.")
    kept.keys = {name: _split_keys(arrays) for name, arrays in task.groups["keys"].items()}
    names = sorted(kept.keys)
    kept.needed = needed = threshold(len(names), settings.privacy.quorum)
    # a server that swaps keys, or lists one site under several names, could open the masks
    mine = [_public(_private(key)).hex() for key in (kept.mask_key, kept.cipher_key)]
    if (
        kept.keys.get(site.name) != mine
        or needed > len(names)
        or len(set(map(tuple, kept.keys.values()))) < len(names)
    ):
        raise UserError(
            f"The server's list of {len(names)} sites does not hold this site's own keys once, or is shorter than "
            f"the {needed} sites that a secure sum needs; this site takes no part in it."
        )
    seed, key = bytes.fromhex(kept.seed), bytes.fromhex(kept.mask_key)
    both = zip(create_shares(seed, needed, len(names)), create_shares(key, needed, len(names)), strict=True)
    sealed = []
    for name, (seed_share, key_share) in zip(names, both, strict=True):
        if name == site.name:
            kept.own_shares = [seed_share.hex(), key_share.hex()]
            continue
        plain = seed_share + key_share + _label(kept.session, site.name, name)
        sealed.append(_bytes(base64.urlsafe_b64decode(encrypt(_cipher_key(kept, name), plain))))
    _save(site, kept)
    return _reply(site, {"shares": np.stack(sealed), "commitment": _bytes(hashlib.sha256(seed).digest())})


def mask_summands(summands: PackedSums, task: wire.Task, site: SiteConfig) -> wire.Groups:
    """Return the masked numbers of this site, uint64, in the order of `common.privacy.packed_sums.pack`.

    Raises `UserError` where too few sites are left to hide among, or a number does not fit into the ring.
    """
    kept = _load(site, task)
    names = str(task.options["secure.sites"]).split(",")
    needed = kept.needed
    if (
        kept.included
        or len(set(names)) < needed
        or not set(names) <= set(kept.keys)
        or site.name not in names
    ):
        raise UserError(
            f"The server asks for a sum over {len(names)} sites, of which {needed} that shared their secrets are "
            "needed, once; nothing was sent."
        )
    bits: Mapping[str, int] = json.loads(str(task.options["secure.bits"]))
    try:
        encoded = [
            to_ring(np.ravel(summands[key]), digits_of(bits, key), len(kept.keys)) for key in sorted(summands)
        ]
    except ValueError as error:
        raise UserError(f"This site's numbers do not fit into a secure sum: {error}.") from None
    vector = np.concatenate(encoded)
    pairs = {
        name: pair_key(_agreed(kept.mask_key, kept.keys[name][0]), kept.session, site.name, name)
        for name in names
        if name != site.name
    }
    mask = site_mask(bytes.fromhex(kept.seed), pairs, kept.session, site.name, len(vector))
    kept.included = sorted(names)
    # the other sites hold shares of them; even if this sum fails, they are gone here
    kept.seed = kept.mask_key = ""
    _save(site, kept)  # before anything leaves: the same secrets never mask two vectors
    return {"masked": {"vector": vector + mask}}


def answer_unmask(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Give for every included site one share: of its seed where it stayed, of its mask key where it was lost.

    Returns ``shares`` uint8 [included, 52] in the order of names.
    """
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt

    kept = _load(site, task)
    stayed = set(str(task.options["secure.survivors"]).split(","))
    needed = kept.needed
    if kept.answered or len(stayed) < needed or not stayed <= set(kept.included) or site.name not in stayed:
        raise UserError(
            f"The server asks for the shares of a sum with {len(stayed)} of {len(kept.included)} sites, {needed} are "
            "needed, and only once; nothing was given away."
        )
    found = []
    for name in kept.included:
        if name == site.name:
            seed_share = bytes.fromhex(kept.own_shares[0])
            found.append(_bytes(seed_share))
            continue
        token = base64.urlsafe_b64encode(task.groups["shares"][name].tobytes())
        plain = decrypt(_cipher_key(kept, name), token)  # raises for anything that was not made for this site
        if plain[2 * SHARE_BYTES :] != _label(kept.session, name, site.name):
            raise UserError(f"The shares that were passed on in the name of site {name} are of another sum.")
        found.append(_bytes(plain[:SHARE_BYTES] if name in stayed else plain[SHARE_BYTES : 2 * SHARE_BYTES]))
    kept.answered = True
    kept.cipher_key, kept.own_shares = "", []  # nothing is left that opens anything
    _save(site, kept)
    return _reply(site, {"shares": np.stack(found)})


def fewest_sites(task: wire.Task, site: SiteConfig) -> int:
    """Return the number of sites without which the server cannot open the total of this secure sum."""
    return _load(site, task).needed


def _feature_exponent(settings: RunConfig, site: SiteConfig) -> int:
    """Return the smallest whole e with all features of this site in [-2^e, 2^e]."""
    features = site.features(settings)
    largest = max(float(features.batch([index]).abs().max()) for index in range(len(features)))
    return math.ceil(math.log2(max(largest, 2.0**-100)))  # features that are all 0 have no logarithm


# ---- keys and files --------------------------------------------------------------------------------


def _reply(site: SiteConfig, arrays: wire.Arrays) -> wire.Update:
    return wire.Update(site=site.name, weights_hash="", groups={"secure": arrays})


def _session(task: wire.Task) -> str:
    return f"{task.run_key}/{task.round}/{task.options['secure.session']}"


def _label(session: str, sender: str, receiver: str) -> bytes:
    return hashlib.sha256("\x1f".join((session, sender, receiver)).encode()).digest()


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


def _private_hex(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_numbers().private_value.to_bytes(SEED_BYTES, "big").hex()


def _private(text: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int(text, 16), _CURVE)


def _public(key: ec.EllipticCurvePrivateKey) -> bytes:
    point = serialization.PublicFormat.CompressedPoint
    return key.public_key().public_bytes(serialization.Encoding.X962, point)


def _split_keys(packed: np.ndarray) -> list[str]:
    data = packed.astype(np.uint8).tobytes()
    return [data[: len(data) // 2].hex(), data[len(data) // 2 :].hex()]


def _agreed(private: str, public: str) -> bytes:
    """Return the 32 bytes on which two sites agree by Diffie and Hellman's method (Flower's primitive)."""
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key

    other = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, bytes.fromhex(public))
    return base64.urlsafe_b64decode(generate_shared_key(_private(private), other))


def _cipher_key(kept: Secrets, other: str) -> bytes:
    return base64.urlsafe_b64encode(_agreed(kept.cipher_key, kept.keys[other][1]))


def _path(site: SiteConfig) -> Path:
    return site.state_dir / site.name / "secure-sum.json"


def _save(site: SiteConfig, kept: Secrets) -> None:
    atomic_write_bytes(_path(site), json.dumps(asdict(kept)).encode(), private=True)


def _load(site: SiteConfig, task: wire.Task) -> Secrets:
    try:
        fields: dict[str, Any] = json.loads(_path(site).read_text(encoding="utf-8"))
        kept = Secrets(**fields)
    except (OSError, ValueError, TypeError):
        raise UserError(
            "This site has no secrets for a secure sum; it takes part again in the next one."
        ) from None
    if kept.session != _session(task):
        raise UserError(
            f"The server speaks of another secure sum than this site's ({kept.session!r}); it is left out."
        )
    return kept
