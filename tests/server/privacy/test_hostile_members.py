"""Can one site that lies block or spoil a secure sum, or have another one named for it?"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from client.privacy import secure_site
from common import wire
from common.privacy.binding import CURVE, private_hex, public_hex, signed, survivors_statement
from common.privacy.secret_sharing import split_secret
from server.privacy.group_search import Suspects
from tests.support.secure_round import secure_round
from tests.support.secure_sites import Sites, lost_from, settings_of, values_of

CROOK = "site-01"
KEYS, SHARES, MASKED = wire.SECURE_KEYS, wire.SECURE_SHARES, wire.TRAIN
SIGN, UNMASK = wire.SECURE_CONSISTENCY, wire.SECURE_UNMASK
RNG = np.random.default_rng(0)
Change = Callable[[wire.Update], None]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def fact(key: str, value: Any) -> Change:
    return lambda update: update.facts.__setitem__(key, value)


def array(key: str, change: Callable[[np.ndarray], np.ndarray], group: str = "secure") -> Change:
    def apply(update: wire.Update) -> None:
        update.groups[group][key] = change(update.groups[group][key].copy())

    return apply


def noise(value: np.ndarray) -> np.ndarray:
    return np.frombuffer(RNG.bytes(value.nbytes), value.dtype).reshape(value.shape)


def nothing(update: wire.Update) -> None:
    update.facts.clear()
    update.groups.clear()


def both_keys_the_same(update: wire.Update) -> None:
    update.facts["cipher"] = update.facts["mask"]


def other_identity(update: wire.Update) -> None:
    update.facts["identity"] = public_hex(ec.generate_private_key(CURVE))


def a_signature_of_another_list(update: wire.Update) -> None:
    stranger = ec.generate_private_key(CURVE)
    update.facts["signature"] = signed(stranger, survivors_statement("", ["a"]))


def some_rows(value: np.ndarray) -> np.ndarray:
    value[:1] ^= 1
    return value


@dataclass(frozen=True)
class Lie:
    """What the crook does at one message; ``named`` is a word of the reason by which the server names it."""

    at: str
    change: Change
    named: str
    vanishes: str = ""


OFF_CURVE = "02" + "ff" * 32
LIES = {
    "mask key off the curve": Lie(KEYS, fact("mask", OFF_CURVE), "no point"),
    "cipher key off the curve": Lie(KEYS, fact("cipher", OFF_CURVE), "no point"),
    "mask key of another curve's length": Lie(KEYS, fact("mask", "02" + "11" * 48), "no point"),
    "mask key that is no hex": Lie(KEYS, fact("mask", "zz" * 33), "no point"),
    "identity that is no key": Lie(KEYS, fact("identity", "00"), "not signed"),
    "identity of nobody": Lie(KEYS, other_identity, "not signed"),
    "keys with a wrong signature": Lie(KEYS, fact("signature", "3006020101020101"), "not signed"),
    "keys with an endless signature": Lie(KEYS, fact("signature", "30" * 6000), "not signed"),
    "one key for two purposes": Lie(KEYS, both_keys_the_same, "not signed"),
    "keys without any": Lie(KEYS, nothing, "incomplete"),
    "a number for a key": Lie(KEYS, fact("mask", 7), "incomplete"),
    "exponent that is no number": Lie(KEYS, fact("exponent", "12"), "incomplete"),
    "exponent that is yes": Lie(KEYS, fact("exponent", True), "incomplete"),
    "exponent it did not sign": Lie(KEYS, fact("exponent", 90), "not signed"),
    "sealed shares of noise": Lie(SHARES, array("shares", noise), "cannot be opened"),
    "a sealed share broken": Lie(SHARES, array("shares", some_rows), ""),
    "promises of noise": Lie(SHARES, array("hashes", noise), "cannot be opened"),
    "commitment of noise": Lie(SHARES, array("commitment", noise), "do not fit together"),
    "shares of floats": Lie(SHARES, array("shares", lambda v: v.astype(np.float32)), "another type"),
    "shares of another shape": Lie(SHARES, array("shares", lambda v: v[:, :9]), "shape"),
    "no shares": Lie(SHARES, nothing, "missing"),
    "broken shares, then lost": Lie(SHARES, array("shares", noise), "cannot be opened", MASKED),
    "numbers of noise": Lie(MASKED, array("vector", noise, "masked"), "spoil"),
    "numbers far out of range": Lie(
        MASKED, array("vector", lambda v: v + np.uint64(1 << 60), "masked"), "spoil"
    ),
    "numbers of floats": Lie(MASKED, array("vector", lambda v: v.astype(float), "masked"), "another type"),
    "numbers of NaN": Lie(MASKED, array("vector", lambda v: v * np.nan, "masked"), "NaN"),
    "numbers of signed integers": Lie(MASKED, array("vector", lambda v: v.view(np.int64), "masked"), "type"),
    "numbers, too few": Lie(MASKED, array("vector", lambda v: v[:2], "masked"), "shape"),
    "numbers, none": Lie(MASKED, nothing, "missing"),
    "another question": Lie(MASKED, fact("context", "0" * 64), "something else"),
    "no question": Lie(MASKED, fact("context", 3), "something else"),
    "signature of another list": Lie(SIGN, a_signature_of_another_list, "signature"),
    "no signature": Lie(SIGN, nothing, "signature"),
    "signature that is no text": Lie(SIGN, fact("signature", 5), "signature"),
    "wrong shares given": Lie(UNMASK, array("shares", noise), "not the one that it got"),
    "one wrong share given": Lie(UNMASK, array("shares", some_rows), "not the one that it got"),
    "all shares said to be broken": Lie(UNMASK, array("whole", np.zeros_like), ""),
    "shares given of another shape": Lie(UNMASK, array("shares", lambda v: v[:1, :4]), "shape"),
    "shares given of another type": Lie(UNMASK, array("shares", lambda v: v.astype(int)), "type"),
    "no shares given": Lie(UNMASK, nothing, "missing"),
}


def rounds_with(lie: Lie, count: int, folder: Path) -> None:
    """Run rounds in which one site lies each time: every one counts, for the honest ones, and names no other."""
    values, suspects = values_of(count), Suspects()

    def spoil(name: str, action: str, update: wire.Update) -> wire.Update:
        if name == CROOK and action == lie.at:
            lie.change(update)
        return update

    lost = {CROOK: lost_from(lie.vanishes)} if lie.vanishes else {}
    # three honest and lying sites can hide from the server, but not from one that works with it as well
    settings = settings_of(colluders=0 if count == 3 else 1)
    for number in range(1, 4 if lie.named == "spoil" else 2):
        sites = Sites(folder, values, lost, spoil, settings=settings, number=number)
        done = secure_round(sites, suspects)
        assert done.total is not None, (number, done.refused)
        assert np.allclose(done.total, sum(values[name] for name in done.stayed), atol=1e-9)
        honest = values.keys() - {CROOK}
        left_out = honest - done.stayed
        if lie.named == "spoil":  # nobody sees who it was: at first others go with it, and never all
            assert len(done.stayed) >= len(honest) // 2
        else:
            assert not left_out
            assert not (done.refused.keys() - {CROOK}), done.refused
            assert lie.named in done.refused.get(CROOK, ""), done.refused
    if lie.named == "spoil" and len(suspects.names) <= 1:
        assert set(suspects.barred) <= {CROOK}


@pytest.mark.parametrize("count", [3, 8])
@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_site_that_lies_costs_a_sum_that_site_alone(tmp_path: Path, lie: str, count: int) -> None:
    rounds_with(LIES[lie], count, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_site_that_lies_among_twenty_costs_that_site_alone(tmp_path: Path, lie: str) -> None:
    rounds_with(LIES[lie], 20, tmp_path)


@pytest.mark.parametrize("count", [3, 8])
@pytest.mark.parametrize("vanishes", ["", MASKED])
def test_shares_that_make_no_secret_are_their_owners_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, vanishes: str
) -> None:
    # every share is as promised, but they do not lie on one polynomial
    turn: list[str] = []

    def torn(secret: bytes, needed: int, holders: int) -> list[bytes]:
        parts = [split_secret(secret, needed, holders) for _ in range(holders)]
        return [part[i] for i, part in enumerate(parts)] if turn[-1] == CROOK else parts[0]

    monkeypatch.setattr(secure_site, "split_secret", torn)
    values = values_of(count)

    class Watched(Sites):
        def answer(self, name: str, action: str, letter: Any) -> wire.Update:
            turn.append(name)
            return super().answer(name, action, letter)

    lost = {CROOK: lost_from(vanishes)} if vanishes else {}
    sites = Watched(tmp_path, values, lost, settings=settings_of(colluders=0 if count == 3 else 1))
    done = secure_round(sites)
    assert done.stayed == values.keys() - {CROOK}
    assert "do not fit together" in done.refused[CROOK]
    assert done.total is not None
    assert np.allclose(done.total, sum(values[name] for name in done.stayed), atol=1e-9)


@pytest.mark.parametrize("count", [8, 20])
def test_a_site_that_spoils_every_sum_is_found(tmp_path: Path, count: int) -> None:
    values, suspects = values_of(count), Suspects()
    lie = LIES["numbers of noise"]

    def spoil(name: str, action: str, update: wire.Update) -> wire.Update:
        if name == CROOK and action == lie.at:
            lie.change(update)
        return update

    for number in range(1, 12):
        sites = Sites(tmp_path, values, spoil=spoil, settings=settings_of(colluders=1), number=number)
        done = secure_round(sites, suspects)
        assert done.total is not None and CROOK not in done.stayed
        if suspects.barred:
            break
    assert set(suspects.barred) == {CROOK}
    assert number <= 8


def test_no_part_of_a_search_is_smaller_than_a_site_can_hide_in(tmp_path: Path) -> None:
    asked: list[int] = []

    class Watched(Sites):
        def total(self, names: list[str] | None = None) -> Any:
            asked.append(len(names or ()))
            return super().total(names)

    def spoil(name: str, action: str, update: wire.Update) -> wire.Update:
        if action == MASKED and name in ("site-01", "site-05", "site-11"):
            array("vector", noise, "masked")(update)
        return update

    secure_round(Watched(tmp_path, values_of(20), spoil=spoil, settings=settings_of(colluders=2)))
    assert min(asked) >= 4 and len(asked) > 2


def test_an_exponent_that_would_cost_the_others_their_precision_is_not_believed() -> None:
    from server.privacy.number_range import excessive_exponents

    assert excessive_exponents({"a": 3, "b": 4, "c": 5, "d": 12}) == {}
    assert set(excessive_exponents({"a": 3, "b": 4, "c": 5, "d": 13})) == {"d"}
    assert set(excessive_exponents({"a": 4, "b": 100})) == {"b"}
    assert excessive_exponents({}) == {}
    assert "2^13" in excessive_exponents({"a": 3, "b": 4, "d": 13})["d"]


def test_a_key_that_two_sites_use_leaves_both_out(tmp_path: Path) -> None:
    identity = private_hex(ec.generate_private_key(CURVE))
    kept: dict[str, wire.Update] = {}

    def spoil(name: str, action: str, update: wire.Update) -> wire.Update:
        if action == KEYS and name in ("site-01", "site-02"):
            from common.privacy.binding import Announcement, private_key, session_of

            key = private_key(identity)
            kept.setdefault("keys", update)
            facts = dict(kept["keys"].facts) | {"identity": public_hex(key), "signature": ""}
            own = Announcement(**facts)  # type: ignore[arg-type]
            session = session_of("run", 3, "s.0")
            update.facts.update(facts | {"signature": signed(key, own.statement(session, name))})
        return update

    values = values_of(8)
    done = secure_round(Sites(tmp_path, values, spoil=spoil, settings=settings_of(colluders=1)))
    assert done.stayed == values.keys() - {"site-01", "site-02"}
    assert all("another site" in done.refused[name] for name in ("site-01", "site-02"))
