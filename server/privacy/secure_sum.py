"""Secure aggregation at the server: the total over sites, no single site's part, though sites may get lost or lie.

It passes public keys, encrypted shares and signatures on between the sites (`common.privacy.secure_masks` has the
protocol, `client.privacy.secure_site` the other side), adds up what they masked, and takes off the masks that are left
(`server.privacy.unmasking`). What a site sends is checked where it arrives, and a bad part costs that site alone as
long as enough others stay.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common import wire
from common.losses.base import Shapes
from common.privacy.binding import Announcement, is_signed, roster_hash, survivors_statement
from common.privacy.neighbors import degree, holders_of, share_threshold
from common.privacy.packed_sums import PackedSums
from common.privacy.secret_sharing import SHARE_BYTES
from common.privacy.secure_masks import Ring, digits_of, from_ring, threshold
from server.privacy.number_range import excessive_exponents
from server.privacy.unmasking import Opening, Refuse, relayed
from server.transport.exchange import Payload
from server.transport.reply_checks import ReplySchema

_SEALED_BYTES = 2 * SHARE_BYTES + 16  # two shares and the tag of ChaCha20-Poly1305

# Sends each site its letter by an action and returns the replies that are as expected, by name. Bytes and the reasons
# of those that are missing are the sender's business.
Post = Callable[[Mapping[str, Payload], str, ReplySchema], dict[str, wire.Update]]


@dataclass(frozen=True)
class SecureTotal:
    """The total in the ring over ``replies``, or ``None`` and the reason; ``needed`` sites had to stay.

    Without the sites of ``blamed`` another sum may work.
    """

    vector: Ring | None
    replies: dict[str, wire.Update] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    needed: int = 0
    blamed: dict[str, str] = field(default_factory=dict)
    exponent: int = 0

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


class Failure(Exception):
    """Why there is no total."""


@dataclass(frozen=True)
class SecureSum:
    """One secure sum of ``length`` numbers.

    Attributes:
        post: sends letters and returns what came back well-formed.
        refuse: hears why a site is left out.
        bits: from the exponent of the largest feature, binary digits after the point by kind of number.
        scale: whether sites have to say how large their features are.
        session: names this sum among all of the run, as the sites do (`session_of`).
        label: tells it from the others of the round.
        quorum: share of the sites that have to stay.
        colluders: sites that may work with the server (`common.privacy.secure_masks.threshold`).
    """

    post: Post
    length: int
    bits: Callable[[int], Mapping[str, int]]
    session: str
    label: str
    quorum: float
    colluders: int = 0
    scale: bool = False
    weights_hash: str = ""
    refuse: Refuse = lambda name, reason: None

    def total(self, letters: Mapping[str, Payload], action: str) -> SecureTotal:
        """Have each site do what its letter says by ``action``, and return the total."""
        try:
            return self._total(letters, action)
        except Failure as failure:
            return SecureTotal(None, reason=str(failure))

    def _total(self, letters: Mapping[str, Payload], action: str) -> SecureTotal:
        said: wire.Options = {"secure.session": self.label}
        roster = self._keys(letters, said)
        needed = threshold(len(roster), self.quorum, self.colluders)
        if len(roster) < needed:
            raise Failure(f"{len(roster)} sites sent keys, {needed} are needed")
        exponent = max(one.exponent for one in roster.values())
        bits = dict(self.bits(exponent))
        holders = holders_of(roster, bytes.fromhex(roster_hash(roster)))
        shares = self._shares(roster, said, needed)
        # whoever is lost from here on has left masks in the others' numbers
        included = sorted(shares)
        asked: wire.Options = said | {"secure.sites": ",".join(included), "secure.bits": json.dumps(bits)}
        letters = {name: Payload(letters[name].groups, letters[name].options | asked) for name in included}
        masked, context = self._masked(letters, action, needed)
        signatures = self._signatures(masked, context, roster, said, needed)
        given = self._given(signatures, holders, shares, said)
        opening = Opening(
            self.session,
            context,
            roster,
            holders,
            shares,
            frozenset(masked),
            given,
            share_threshold(len(roster), needed),
        )
        total = np.zeros(self.length, dtype=np.uint64)
        # the ring is exact: sums of uint64 wrap around, in any order
        for name in sorted(masked):
            total += masked[name].groups["masked"]["vector"]
        reason = opening.remove_masks(total, self.refuse)
        if reason:
            return SecureTotal(None, reason=reason, blamed=opening.blamed)
        return SecureTotal(total, dict(sorted(masked.items())), bits, needed=needed, exponent=exponent)

    def _keys(self, letters: Mapping[str, Payload], said: wire.Options) -> dict[str, Announcement]:
        """Return what sites announce; those whose announcement is wrong are left out."""
        asked = said | {"secure.scale": self.scale}
        keys = self.post({name: Payload({}, asked) for name in letters}, wire.SECURE_KEYS, ReplySchema({}))
        found: dict[str, Announcement] = {}
        for name, update in sorted(keys.items()):
            announced = _announcement(update.facts)
            fault = "its keys are incomplete" if announced is None else announced.fault(self.session, name)
            if fault or announced is None:
                self.refuse(name, str(fault))
            else:
                found[name] = announced
        for reasons in (_repeated(found), excessive_exponents({n: one.exponent for n, one in found.items()})):
            for name, reason in reasons.items():
                self.refuse(name, reason)
                found.pop(name, None)
        return found

    def _shares(
        self, roster: Mapping[str, Announcement], said: wire.Options, needed: int
    ) -> dict[str, wire.Update]:
        told = said | {"secure.roster": json.dumps({name: vars(one) for name, one in roster.items()})}
        others = degree(len(roster))
        arrays = {"shares": (others, _SEALED_BYTES), "commitment": (32,), "hashes": (others + 1, 2, 32)}
        found = self._typed(
            self.post(
                {name: Payload({}, told) for name in roster},
                wire.SECURE_SHARES,
                ReplySchema({"secure": arrays}),
            ),
            np.uint8,
        )
        if len(found) < needed:
            raise Failure(f"{len(found)} of {len(roster)} sites shared their secrets, {needed} are needed")
        return found

    def _masked(
        self, letters: Mapping[str, Payload], action: str, needed: int
    ) -> tuple[dict[str, wire.Update], str]:
        """Return the masked numbers of the sites that were asked the same, and the hash of that."""
        schema = ReplySchema({"masked": {"vector": (self.length,)}}, self.weights_hash)
        found = self._typed(self.post(letters, action, schema), np.uint64)
        votes = Counter(str(update.facts.get("context", "")) for update in found.values())
        context, most = max(votes.items(), key=lambda vote: (vote[1], vote[0]), default=("", 0))
        if most < needed:
            raise Failure(f"{most} of {len(letters)} sites sent their numbers, {needed} are needed")
        for name in [name for name, update in found.items() if update.facts.get("context", "") != context]:
            self.refuse(name, "it says that it was asked for something else than the others")
            del found[name]
        return found, context

    def _signatures(
        self,
        masked: Mapping[str, wire.Update],
        context: str,
        roster: Mapping[str, Announcement],
        said: wire.Options,
        needed: int,
    ) -> dict[str, str]:
        told = said | {"secure.survivors": ",".join(sorted(masked))}
        letters = {name: Payload({}, told) for name in masked}
        statement = survivors_statement(context, masked)
        found: dict[str, str] = {}
        for name, update in self.post(letters, wire.SECURE_CONSISTENCY, ReplySchema({})).items():
            signature = str(update.facts.get("signature", ""))
            if is_signed(roster[name].identity, statement, signature):
                found[name] = signature
            else:
                self.refuse(name, "its signature of what it was asked is wrong")
        if len(found) < needed:
            raise Failure(
                f"{len(found)} of {len(masked)} sites signed what they were asked, {needed} are needed"
            )
        return found

    def _given(
        self,
        signatures: Mapping[str, str],
        holders: Mapping[str, tuple[str, ...]],
        shares: Mapping[str, wire.Update],
        said: wire.Options,
    ) -> dict[str, wire.Update]:
        """Return the shares that sites give; whether they are right is seen when they are used."""
        told = said | {"secure.signatures": json.dumps(dict(signatures))}
        letters = {
            name: Payload({"secure": relayed(name, holders, shares, _SEALED_BYTES)}, told)
            for name in signatures
        }
        rows = len(next(iter(holders.values())))
        schema = ReplySchema({"secure": {"shares": (rows, SHARE_BYTES), "whole": (rows,)}})
        return self._typed(self.post(letters, wire.SECURE_UNMASK, schema), np.uint8)

    def _typed(self, updates: Mapping[str, wire.Update], dtype: Any) -> dict[str, wire.Update]:
        """Return the updates whose arrays are all of one type; the schema has looked at names and shapes."""
        found = {}
        for name, update in updates.items():
            kinds = {array.dtype for arrays in update.groups.values() for array in arrays.values()}
            if kinds == {np.dtype(dtype)}:
                found[name] = update
            else:
                self.refuse(name, f"its part of the secure sum is of another type than {np.dtype(dtype)}")
        return found


def _announcement(facts: Mapping[str, object]) -> Announcement | None:
    texts = {key: facts.get(key) for key in ("mask", "cipher", "identity", "signature")}
    exponent = facts.get("exponent")
    if isinstance(exponent, bool) or not isinstance(exponent, int):
        return None
    if not all(isinstance(text, str) for text in texts.values()):
        return None
    return Announcement(exponent=exponent, **{key: str(text) for key, text in texts.items()})


def _repeated(roster: Mapping[str, Announcement]) -> dict[str, str]:
    """Return why sites are left out whose keys another site has as well, or which use a key for two purposes."""
    uses = Counter(key for one in roster.values() for key in (one.mask, one.cipher, one.identity))
    return {
        name: "its keys are also those of another site, or serve two purposes"
        for name, one in roster.items()
        if max(uses[key] for key in (one.mask, one.cipher, one.identity)) > 1
    }
