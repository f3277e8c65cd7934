"""Secure aggregation at a site: the server learns the total over sites and nothing of one alone.

A sum has five messages (`common.privacy.secure_masks`): public keys, encrypted shares of this site's secrets for the
other sites, the masked numbers, a signature of what was asked and who is in the total, and at last the shares that the
total needs. A site gives shares once, and only after enough others have signed the same as itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from client.privacy.members import checked_roster, identity_key
from client.privacy.secure_state import Secrets, begin_sum, load_secrets, save_secrets, session_name
from client.site import SiteConfig
from common import wire
from common.errors import UserError
from common.privacy.binding import (
    CURVE,
    Announcement,
    agree,
    hashed,
    is_signed,
    private_hex,
    private_key,
    public_hex,
    received_hash,
    roster_hash,
    signed,
    survivors_statement,
)
from common.privacy.neighbors import holders_of, share_threshold
from common.privacy.packed_sums import PackedSums
from common.privacy.secret_sharing import SHARE_BYTES, split_secret
from common.privacy.secure_masks import (
    SEED_BYTES,
    Ring,
    add_own_mask,
    add_pair_mask,
    digits_of,
    pair_key,
    subkey,
    threshold,
    to_ring,
)
from common.settings.schema import RunConfig


def answer_keys(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Make two key pairs and a seed for one secure sum, and announce the public keys, signed (`Announcement`).

    Where the sum is of features, whose size nobody knows beforehand, ``exponent`` says below which power of two all
    of this site's lie.
    """
    mask, cipher = (ec.generate_private_key(CURVE) for _ in range(2))
    session, identity = session_name(task), identity_key(site)
    seed = secrets.token_bytes(SEED_BYTES).hex()
    begin_sum(site, task, Secrets(session, private_hex(mask), private_hex(cipher), seed))
    exponent = _feature_exponent(settings, site) if task.options.get("secure.scale") else 0
    own = Announcement(public_hex(mask), public_hex(cipher), public_hex(identity), exponent, "")
    own = replace(own, signature=signed(identity, own.statement(session, site.name)))
    return wire.Update(site=site.name, weights_hash="", facts=dict(vars(own)))


def answer_shares(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Share seed and mask key among this site's holders (`holders_of`), each share encrypted for its receiver.

    Returns ``shares`` uint8 [holders - 1, bytes] in the order of the other holders' names, ``commitment`` uint8 [32]
    to the seed, and ``hashes`` uint8 [holders, 2, 32] of all shares, by which the server tells wrong ones.
    """
    kept = load_secrets(site, task)
    if kept.roster:
        raise UserError("The server asks twice for the shares of one secure sum; a site gives them once.")
    kept.roster = checked_roster(task, kept, site)
    names = sorted(kept.roster)
    kept.needed = threshold(len(names), settings.privacy.quorum, settings.privacy.colluders)
    if kept.needed > len(names):
        raise UserError(
            f"The server's list has {len(names)} sites, fewer than the {kept.needed} that a secure sum needs; this "
            "site takes no part in it."
        )
    holders = holders_of(names, _draw(kept))[site.name]
    needed, seed = share_threshold(len(names), kept.needed), bytes.fromhex(kept.seed)
    parts = [split_secret(one, needed, len(holders)) for one in (seed, bytes.fromhex(kept.mask_key))]
    sealed, hashes = [], []
    for name, seed_share, key_share in zip(holders, *parts, strict=True):
        hashes.append([_bytes(hashlib.sha256(share).digest()) for share in (seed_share, key_share)])
        if name == site.name:
            kept.own_shares = [seed_share.hex(), key_share.hex()]
        else:
            sealed.append(
                _bytes(_seal(kept, name, site.name, name).encrypt(bytes(12), seed_share + key_share, None))
            )
    save_secrets(site, task, kept)
    commitment = _bytes(hashlib.sha256(seed).digest())
    return _reply(
        site, {"shares": np.stack(sealed), "commitment": commitment, "hashes": np.asarray(hashes, np.uint8)}
    )


def mask_summands(
    summands: PackedSums, task: wire.Task, site: SiteConfig, phase: str
) -> tuple[wire.Groups, str]:
    """Return the masked numbers of this site, uint64, in the order of `pack`, and the hash of what was asked.

    Raises `UserError` where too few sites are left to hide among, or a number does not fit into the ring.
    """
    kept = load_secrets(site, task)
    names = str(task.options["secure.sites"]).split(",")
    included = sorted(set(names))
    holders = holders_of(kept.roster, _draw(kept))[site.name] if kept.roster else ()
    present = set(holders) & set(included)
    if (
        kept.included
        or not 0 < kept.needed <= len(included)
        or not set(included) <= set(kept.roster)
        or site.name not in included
        or len(present) < share_threshold(len(kept.roster), kept.needed)
    ):
        raise UserError(
            f"The server asks for a sum over {len(names)} sites, of which {kept.needed} that shared their secrets are "
            "needed, once; nothing was sent."
        )
    bits: Mapping[str, int] = json.loads(str(task.options["secure.bits"]))
    try:
        encoded = [
            to_ring(np.ravel(summands[key]), digits_of(bits, key), len(kept.roster))
            for key in sorted(summands)
        ]
    except (ValueError, KeyError) as error:
        reason = error if isinstance(error, ValueError) else "the server gave no digits for them"
        raise UserError(f"This site's numbers do not fit into a secure sum: {reason}.") from None
    kept.context = _context(summands, task, kept, included, phase)
    vector: Ring = np.concatenate(encoded)
    mine = private_key(kept.mask_key)
    for name in sorted(present - {site.name}):
        key = pair_key(agree(mine, kept.roster[name].mask), kept.context, site.name, name)
        add_pair_mask(vector, key, site.name, name)
    add_own_mask(vector, bytes.fromhex(kept.seed), kept.session)
    kept.included = included
    # the other sites hold shares of them; even if this sum fails, they are gone here
    kept.seed = kept.mask_key = ""
    save_secrets(site, task, kept)  # before anything leaves: the same secrets never mask two vectors
    return {"masked": {"vector": vector}}, kept.context


def answer_consistency(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Sign what this site was asked and who is in the total; once, for one list of sites."""
    kept = load_secrets(site, task)
    stayed = sorted(set(str(task.options["secure.survivors"]).split(",")))
    if (
        kept.answered
        or (kept.survivors and kept.survivors != stayed)
        or not 0 < kept.needed <= len(stayed)
        or not set(stayed) <= set(kept.included)
        or site.name not in stayed
    ):
        raise UserError(
            f"The server asks for a total of {len(stayed)} of {len(kept.included)} sites, {kept.needed} are needed, "
            "and once; nothing was signed."
        )
    kept.survivors = stayed
    save_secrets(site, task, kept)
    signature = signed(identity_key(site), survivors_statement(kept.context, stayed))
    return wire.Update(site=site.name, weights_hash="", facts={"signature": signature})


def answer_unmask(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Give one share of every site whose holder this one is: of its seed where it stayed, of its key where it was lost.

    Returns ``shares`` uint8 [owners, bytes] in the order of names, and ``whole`` uint8 [owners], 0 where the owner is
    not in the sum, or what was passed on in its name is broken.
    """
    kept = load_secrets(site, task)
    if kept.answered or not kept.survivors:
        raise UserError(
            "The server asks again for the shares of one secure sum, or before this site signed it."
        )
    signatures: Mapping[str, str] = json.loads(str(task.options["secure.signatures"]))
    statement = survivors_statement(kept.context, kept.survivors)
    same = {
        name
        for name in kept.survivors
        if is_signed(kept.roster[name].identity, statement, str(signatures.get(name, "")))
    }
    if len(same) < kept.needed:
        raise UserError(
            f"Only {len(same)} sites have signed that they were asked the same as this one for the same total, "
            f"{kept.needed} are needed; nothing was given away."
        )
    # whose holder this site is: the graph is the same from either side
    owners = holders_of(kept.roster, _draw(kept))[site.name]
    found, whole = [], []
    for row, owner in enumerate(owners):
        pair = _opened(task, kept, owner, site.name, row) if owner in kept.included else None
        whole.append(pair is not None)
        share = bytes(SHARE_BYTES) if pair is None else pair[0 if owner in kept.survivors else 1]
        found.append(_bytes(share))
    kept.answered = True
    kept.cipher_key, kept.own_shares = "", []  # nothing is left that opens anything
    save_secrets(site, task, kept)
    return _reply(site, {"shares": np.stack(found), "whole": np.asarray(whole, dtype=np.uint8)})


def fewest_sites(task: wire.Task, site: SiteConfig) -> int:
    """Return the number of sites without which the server cannot open the total of this secure sum."""
    return load_secrets(site, task).needed


def _context(summands: PackedSums, task: wire.Task, kept: Secrets, included: list[str], phase: str) -> str:
    """Return the hash of everything that decides what a sum is of, as this site received it."""
    asked = {key: value for key, value in task.options.items() if key != "secure.roster"}
    shapes = {key: summands[key].shape for key in sorted(summands)}
    return hashed(
        "context",
        kept.session,
        roster_hash(kept.roster),
        str(kept.needed),
        task.settings,
        json.dumps(sorted(asked.items())),
        received_hash(task.groups),
        phase,
        json.dumps(shapes),
        *included,
    ).hex()


def _opened(task: wire.Task, kept: Secrets, owner: str, receiver: str, row: int) -> list[bytes] | None:
    """Return the shares of an owner's seed and key that this site holds; None where they are not as promised."""
    if owner == receiver:
        return [bytes.fromhex(share) for share in kept.own_shares]
    try:
        sealed = task.groups["secure"]["shares"][row].astype(np.uint8).tobytes()
        promised = task.groups["secure"]["hashes"][row].astype(np.uint8).tobytes()
        plain = _seal(kept, owner, owner, receiver).decrypt(bytes(12), sealed, None)
    except (InvalidTag, KeyError, ValueError, IndexError):
        return None
    pair = [plain[:SHARE_BYTES], plain[SHARE_BYTES:]]
    return pair if b"".join(hashlib.sha256(share).digest() for share in pair) == promised else None


def _seal(kept: Secrets, other: str, sender: str, receiver: str) -> ChaCha20Poly1305:
    """Return the cipher of one message between this site and another; its key is used once, hence a nonce of zeros."""
    agreed = agree(private_key(kept.cipher_key), kept.roster[other].cipher)
    return ChaCha20Poly1305(subkey(agreed, "seal", kept.session, sender, receiver))


def _draw(kept: Secrets) -> bytes:
    """Return what draws the graph."""
    return bytes.fromhex(roster_hash(kept.roster))


def _feature_exponent(settings: RunConfig, site: SiteConfig) -> int:
    """Return the smallest whole e with all features of this site in [-2^e, 2^e]."""
    features = site.features(settings)
    largest = max(float(features.batch([index]).abs().max()) for index in range(len(features)))
    return math.ceil(math.log2(max(largest, 2.0**-100)))  # features that are all 0 have no logarithm


def _reply(site: SiteConfig, arrays: wire.Arrays) -> wire.Update:
    return wire.Update(site=site.name, weights_hash="", groups={"secure": arrays})


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)
