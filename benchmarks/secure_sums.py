"""How long does the server take for a secure sum, from 20 to 1,000 sites, beside the way it was done before?

Prints one table. The time is that of the server alone: checks of what arrives, signatures, shares, masks, the sum, and
none of the sites' work. Sites are simulated, a share of them is lost after the secrets went round, and the total is
compared with the numbers that went in. Masks that cancel between sites that stay are left out of what these send; the
server never sees them.

The way before: Flower's `combine_shares` with weights anew for each secret, every site tied to every other, masks as
whole vectors. It is measured for one secret and one mask of each kind in the same process, and multiplied; above 100
shares by the square of their number.

    python benchmarks/secure_sums.py [--sites 20 100 500 1000] [--numbers 300000] [--lost 0.05] [--json FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import wire
from common.privacy.binding import (
    CURVE,
    Announcement,
    agree,
    private_hex,
    public_hex,
    roster_hash,
    session_of,
    signed,
    survivors_statement,
)
from common.privacy.neighbors import degree, holders_of, share_threshold
from common.privacy.secret_sharing import split_secret
from common.privacy.secure_masks import add_own_mask, add_pair_mask, from_ring, pair_key, threshold, to_ring
from server.privacy.secure_sum import SecureSum
from server.transport.exchange import Payload
from server.transport.reply_checks import ReplySchema

QUORUM, COLLUDERS, BITS = 0.66, 1, 40
CONTEXT = "what was asked"
LABEL = "train"
SESSION = session_of("run", 1, LABEL)


@dataclass
class SimulatedSites:
    """Answers letters for all sites and counts the time that this takes, which is not the server's."""

    values: Mapping[str, np.ndarray]
    lost: frozenset[str]
    folder: Path
    seconds: float = 0.0
    keys: dict[str, tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePrivateKey]] = field(
        default_factory=dict
    )
    seeds: dict[str, bytes] = field(default_factory=dict)
    roster: dict[str, Announcement] = field(default_factory=dict)
    parts: dict[str, tuple[list[bytes], list[bytes]]] = field(default_factory=dict)

    def __call__(
        self, letters: Mapping[str, Payload], action: str, schema: ReplySchema
    ) -> dict[str, wire.Update]:
        """Answer an action; the checks of every reply are the server's time."""
        began = time.perf_counter()
        answers = {
            wire.SECURE_KEYS: self._keys,
            wire.SECURE_SHARES: self._shares,
            wire.TRAIN: self._masked,
            wire.SECURE_CONSISTENCY: self._signed,
            wire.SECURE_UNMASK: self._unmask,
        }[action](sorted(letters), letters)
        self.seconds += time.perf_counter() - began
        assert all(schema.fault(update) is None for update in answers.values())
        return answers

    def _keys(self, names: list[str], letters: Mapping[str, Payload]) -> dict[str, wire.Update]:
        for name in names:
            mask, identity = ec.generate_private_key(CURVE), ec.generate_private_key(CURVE)
            cipher = ec.generate_private_key(CURVE)
            self.keys[name] = (mask, identity)
            self.seeds[name] = secrets.token_bytes(32)
            own = Announcement(public_hex(mask), public_hex(cipher), public_hex(identity), 0, "")
            self.roster[name] = replace(own, signature=signed(identity, own.statement(SESSION, name)))
        return {name: wire.Update(name, "", facts=dict(vars(self.roster[name]))) for name in names}

    def _holders(self) -> dict[str, tuple[str, ...]]:
        return holders_of(self.roster, bytes.fromhex(roster_hash(self.roster)))

    def _shares(self, names: list[str], letters: Mapping[str, Payload]) -> dict[str, wire.Update]:
        count = len(names)
        k, needed = degree(count), share_threshold(count, threshold(count, QUORUM, COLLUDERS))
        found = {}
        for name in names:
            both = [self.seeds[name], bytes.fromhex(private_hex(self.keys[name][0]))]
            self.parts[name] = tuple(split_secret(one, needed, k + 1) for one in both)  # type: ignore[assignment]
            hashes = [
                [_bytes(hashlib.sha256(s).digest()) for s in pair]
                for pair in zip(*self.parts[name], strict=True)
            ]
            found[name] = _secure(
                name,
                shares=np.zeros((k, 82), np.uint8),  # the server passes them on and cannot open them
                commitment=_bytes(hashlib.sha256(self.seeds[name]).digest()),
                hashes=np.asarray(hashes, np.uint8),
            )
        return found

    def _masked(self, names: list[str], letters: Mapping[str, Payload]) -> dict[str, wire.Update]:
        holders, found = self._holders(), {}
        for name in (name for name in names if name not in self.lost):
            vector = to_ring(self.values[name], BITS, len(names))
            add_own_mask(vector, self.seeds[name], SESSION)
            for other in self.lost.intersection(holders[name]):
                agreed = agree(self.keys[name][0], self.roster[other].mask)
                add_pair_mask(vector, pair_key(agreed, CONTEXT, name, other), name, other)
            # as the exchange does: numbers wait in files
            file = np.memmap(self.folder / name, dtype=np.uint64, mode="w+", shape=vector.shape)
            file[:] = vector
            facts: wire.Options = {"images": 1, "context": CONTEXT}
            found[name] = wire.Update(name, "", groups={"masked": {"vector": file}}, facts=facts)
        return found

    def _signed(self, names: list[str], letters: Mapping[str, Payload]) -> dict[str, wire.Update]:
        statement = survivors_statement(CONTEXT, names)
        return {
            name: wire.Update(name, "", facts={"signature": signed(self.keys[name][1], statement)})
            for name in names
        }

    def _unmask(self, names: list[str], letters: Mapping[str, Payload]) -> dict[str, wire.Update]:
        holders, found = self._holders(), {}
        for name in names:
            owners = holders[name]
            rows = [self.parts[o][o in self.lost][holders[o].index(name)] for o in owners]
            given = {
                "shares": np.stack([_bytes(row) for row in rows]),
                "whole": np.ones(len(owners), np.uint8),
            }
            found[name] = _secure(name, **given)
        return found


def _secure(name: str, **arrays: np.ndarray) -> wire.Update:
    return wire.Update(name, "", groups={"secure": arrays})


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


def server_seconds(count: int, numbers: int, lost: int) -> float:
    """Return the server's time for one sum; raises AssertionError where the total is wrong."""
    rng = np.random.default_rng(count)
    names = [f"site-{index:04}" for index in range(count)]
    base = rng.normal(size=numbers)
    values = {name: base * (1 + index % 7) for index, name in enumerate(names)}
    gone = frozenset(rng.choice(names, lost, replace=False).tolist())
    degree(count)  # scipy is imported once, not in every sum
    with tempfile.TemporaryDirectory() as folder:
        sites = SimulatedSites(values, gone, Path(folder))
        run = SecureSum(sites, numbers, lambda exponent: {"x": BITS}, SESSION, LABEL, QUORUM, COLLUDERS)
        began = time.perf_counter()
        found = run.total({name: Payload() for name in names}, wire.TRAIN)
        seconds = time.perf_counter() - began - sites.seconds
    assert found.vector is not None, found.reason
    total = sum(values[name] for name in found.replies)
    assert len(found.replies) == count - lost
    assert np.abs(from_ring(found.vector, BITS) - total).max() < count * 2.0**-BITS
    return seconds


def seconds_before(count: int, numbers: int, lost: int) -> float:
    """Return an estimate of the server's time by the way before (see the file's headline)."""
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares

    needed = threshold(count, QUORUM, COLLUDERS)
    measured = min(needed, 100)
    shares = create_shares(bytes(32), measured, measured)
    began = time.perf_counter()
    combine_shares(shares)
    secret = (time.perf_counter() - began) * (needed / measured) ** 2
    total = np.zeros(numbers, dtype=np.uint64)
    began = time.perf_counter()
    for index in range(5):
        key = index.to_bytes(32, "big")
        stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * numbers))
        total = total + np.frombuffer(stream, dtype="<u8").astype(np.uint64)
    mask = (time.perf_counter() - began) / 5
    stayed = count - lost
    return count * secret + (stayed + lost * stayed) * mask


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, nargs="+", default=[20, 100, 500, 1000])
    parser.add_argument("--numbers", type=int, default=300_000)
    parser.add_argument("--lost", type=float, default=0.05)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    print(f"{given.numbers} numbers, {given.lost:.0%} of the sites lost after the secrets went round")
    print("| sites | neighbors | seconds | seconds before (estimate) | ratio |\n|---:|---:|---:|---:|---:|")
    rows = []
    for count in given.sites:
        lost = round(given.lost * count)
        now, before = server_seconds(count, given.numbers, lost), seconds_before(count, given.numbers, lost)
        rows.append({"sites": count, "neighbors": degree(count), "seconds": now, "before": before})
        print(f"| {count} | {degree(count)} | {now:.2f} | {before:.1f} | {before / now:.0f} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
