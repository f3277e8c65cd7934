"""Unmasking of a secure sum: secrets come back from shares, each share is checked, and the masks left are taken off."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from common import wire
from common.privacy.binding import Announcement, agree, private_key, public_hex
from common.privacy.secret_sharing import combine_shares
from common.privacy.secure_masks import Ring, add_own_mask, add_pair_mask, pair_key

# Notes why a site is left out, by name.
Refuse = Callable[[str, str], None]


@dataclass(frozen=True)
class Opening:
    """What the server knows of one sum when it takes off the masks.

    Attributes:
        roster: announcements of the sites that sent keys.
        holders: who holds shares of a site's secrets, in order.
        shares: what a site sealed and promised, of those whose masks are in the sum.
        survivors: the sites whose numbers arrived.
        given: what helpers gave.
        threshold: how many holders open a secret.
    """

    session: str
    context: str
    roster: Mapping[str, Announcement]
    holders: Mapping[str, tuple[str, ...]]
    shares: Mapping[str, wire.Update]
    survivors: frozenset[str]
    given: Mapping[str, wire.Update]
    threshold: int
    blamed: dict[str, str] = field(default_factory=dict)

    def remove_masks(self, total: Ring, refuse: Refuse) -> str | None:
        """Take off in place what a total holds beside the numbers; return why it cannot be done, or None.

        ``refuse`` hears of helpers whose shares are wrong. ``blamed`` then names sites whose secrets do not come back
        as they were promised: a sum without them may work.
        """
        reason = None
        rows = {
            helper: {owner: row for row, owner in enumerate(self.holders[helper])} for helper in self.given
        }
        liars: dict[str, str] = {}
        for owner in sorted(self.shares):
            secret = self._secret(owner, rows, liars)
            if secret is None:
                reason = (
                    reason or self.blamed.get(owner) or f"too few shares of site {owner}'s secret came back"
                )
            elif not reason:
                self._take_off(total, owner, secret)
        for helper, why in liars.items():
            refuse(helper, why)
        for owner, why in self.blamed.items():
            refuse(owner, why)
        return reason

    def _secret(
        self, owner: str, rows: Mapping[str, Mapping[str, int]], liars: dict[str, str]
    ) -> bytes | None:
        """Return a site's seed, or its key where it was lost; None where it does not come back."""
        kind = 0 if owner in self.survivors else 1
        promised = self.shares[owner].groups["secure"]["hashes"]
        places, found, broken = [], [], 0
        for place, helper in enumerate(self.holders[owner]):
            if helper not in self.given:
                continue
            group, row = self.given[helper].groups["secure"], rows[helper][owner]
            if not group["whole"][row]:
                broken += 1  # either of the two is at fault: nobody is named as long as others can help
                continue
            share = group["shares"][row].tobytes()
            if hashlib.sha256(share).digest() != promised[place, kind].tobytes():
                liars[helper] = f"its share of site {owner}'s secret is not the one that it got"
                continue
            places.append(place + 1)
            found.append(share)
            if len(found) == self.threshold:
                break
        if len(found) < self.threshold:
            if len(found) + broken >= self.threshold:
                self.blamed[owner] = (
                    f"what it sent to {broken} other sites cannot be opened, or is not as promised"
                )
            return None
        try:
            secret = combine_shares(found, places)
        except ValueError:
            secret = b""
        if not self._is_promised(owner, secret):
            what = "seed" if kind == 0 else "key"
            self.blamed[owner] = f"the shares of its {what} do not fit together"
            return None
        return secret

    def _is_promised(self, owner: str, secret: bytes) -> bool:
        if owner in self.survivors:
            commitment = self.shares[owner].groups["secure"]["commitment"].tobytes()
            return hashlib.sha256(secret).digest() == commitment
        try:
            return public_hex(private_key(secret.hex())) == self.roster[owner].mask
        except ValueError:
            return False

    def _take_off(self, total: Ring, owner: str, secret: bytes) -> None:
        if owner in self.survivors:
            add_own_mask(total, secret, self.session, subtract=True)
            return
        # a lost site's masks with its neighbors are still in the sum
        private = private_key(secret.hex())
        for other in self.holders[owner]:
            if other in self.survivors:
                key = pair_key(agree(private, self.roster[other].mask), self.context, owner, other)
                add_pair_mask(total, key, other, owner, subtract=True)


def relayed(
    helper: str, holders: Mapping[str, tuple[str, ...]], shares: Mapping[str, wire.Update], size: int
) -> wire.Arrays:
    """Return what a helper needs of the sites whose shares it holds: the sealed ones, and what was promised of them."""
    owners = holders[helper]
    sealed = np.zeros((len(owners), size), dtype=np.uint8)
    hashes = np.zeros((len(owners), 2, 32), dtype=np.uint8)
    for row, owner in enumerate(owners):
        if owner not in shares or owner == helper:
            continue
        group, place = shares[owner].groups["secure"], holders[owner].index(helper)
        hashes[row] = group["hashes"][place]
        # a site seals nothing for itself, which shifts those behind it
        sealed[row] = group["shares"][place - (holders[owner].index(owner) < place)]
    return {"shares": sealed, "hashes": hashes}
