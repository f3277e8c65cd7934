"""Does a server that tells sites different things, alone or with one of them, learn a site's numbers?

Each attack is mounted: the server does not run the protocol's code but takes what sites give it. Sites refuse, and what
the attacker can compute from all that it has is not the victim's numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.privacy.members import identity_key, read_members
from common import wire
from common.errors import UserError
from common.privacy.binding import (
    CURVE,
    Announcement,
    fingerprint,
    hashed,
    public_hex,
    session_of,
    signed,
    survivors_statement,
)
from common.privacy.secure_masks import add_own_mask, from_ring
from server.privacy.secure_sum import SecureSum
from server.privacy.unmasking import Opening
from server.transport.exchange import Payload
from server.transport.reply_checks import ReplySchema
from tests.support.secure_sites import BITS, LENGTH, Sites, settings_of, values_of

KEYS, SHARES, MASKED = wire.SECURE_KEYS, wire.SECURE_SHARES, wire.TRAIN
SIGN, UNMASK = wire.SECURE_CONSISTENCY, wire.SECURE_UNMASK
VICTIM, ALLY = "site-00", "site-02"


def attacked(
    folder: Path, count: int, at: str, change: Callable[[Payload], Payload], victims: int = 1, **own: object
) -> Sites:
    """Run a sum in which some sites hear other letters of a kind than the rest."""
    chosen = sorted(values_of(count))[:victims]

    def tamper(name: str, action: str, letter: Payload) -> Payload:
        return change(letter) if name in chosen and action == at else letter

    sites = Sites(folder, values_of(count), tamper=tamper, settings=settings_of(colluders=1), **own)  # type: ignore[arg-type]
    sites.total()
    return sites


def option(key: str, value: wire.Options | str | float) -> Callable[[Payload], Payload]:
    return lambda letter: Payload(letter.groups, letter.options | {key: value})  # type: ignore[dict-item]


def gave_shares(sites: Sites, name: str) -> bool:
    return any(who == name and action == UNMASK for who, action, _ in sites.seen)


def other_model(letter: Payload) -> Payload:
    return Payload({"head": {"weight": np.zeros(3, np.float32)}}, letter.options)


def fewer_bits(letter: Payload) -> Payload:
    return option("secure.bits", json.dumps({"x": 20}))(letter)


def one_site_less(letter: Payload) -> Payload:
    names = str(letter.options["secure.sites"]).split(",")
    return option("secure.sites", ",".join(names[:-1]))(letter)


# What one site is asked otherwise than the others, in the message that asks for its numbers.
OTHERWISE: dict[str, Callable[[Payload], Payload]] = {
    "another model": other_model,
    "another name for an array": lambda letter: Payload(
        {"head": {"bias": letter.groups["head"]["weight"]}}, letter.options
    ),
    "another shape": lambda letter: Payload(
        {"head": {"weight": np.ones((3, 1), np.float32)}}, letter.options
    ),
    "one more array": lambda letter: Payload(letter.groups | {"more": {"x": np.ones(1)}}, letter.options),
    "another phase": option("phase", "clusters"),
    "one more option": option("starts", 2),
    "a coarser grid": fewer_bits,
}


@pytest.mark.parametrize("count", [3, 8, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize("what", sorted(OTHERWISE))
def test_a_site_that_is_asked_otherwise_gives_nothing_and_its_mask_stays(
    tmp_path: Path, what: str, count: int
) -> None:
    values = values_of(count)
    taken: dict[str, np.ndarray] = {}
    contexts: dict[str, str] = {}

    def tamper(name: str, action: str, letter: Payload) -> Payload:
        return OTHERWISE[what](letter) if name == VICTIM and action == MASKED else letter

    def spoil(name: str, action: str, update: wire.Update) -> wire.Update:
        if action == MASKED:
            taken[name] = update.groups["masked"]["vector"].copy()
            contexts[name] = str(update.facts["context"])
            # the server shuts its eyes to the difference
            update.facts["context"] = "the same"
        return update

    sites = Sites(tmp_path, values, tamper=tamper, spoil=spoil, settings=settings_of(colluders=1))
    assert sites.total().vector is None
    assert contexts[VICTIM] != contexts[ALLY]
    assert len(set(contexts.values())) == 2

    # a server that goes on all the same, with every honest signature that it can get
    greedy = Greedy(Sites(tmp_path / "greedy", values, tamper=tamper, settings=settings_of(colluders=1)))
    greedy.run()
    assert VICTIM not in greedy.given
    assert f"{greedy.needed} are needed" in greedy.sites.refused[VICTIM]
    if count == 3:  # all three would have to agree
        assert not greedy.given
    found = greedy.opened()
    if found is not None:
        honest = sum(values.values())
        assert not np.isclose(found, honest, atol=1).any()  # pairs with the victim do not cancel


class Greedy:
    """A server that passes everything on, ignores what does not fit together, and keeps what it is given."""

    def __init__(self, sites: Sites, allies: Mapping[str, str] | None = None) -> None:
        self.sites = sites
        self.allies = allies or {}
        self.given: dict[str, wire.Update] = {}
        self.masked: dict[str, wire.Update] = {}
        self.sum: SecureSum = sites.sum()
        self.needed = 0
        self.opening: Opening | None = None

    def run(self) -> None:
        names = list(self.sites.values)
        asked = {"head": {"weight": np.ones(3, np.float32)}}
        said: wire.Options = {"secure.session": self.sites.label}
        roster = self.sum._keys({name: Payload() for name in names}, said)
        from common.privacy.binding import roster_hash
        from common.privacy.neighbors import holders_of, share_threshold
        from common.privacy.secure_masks import threshold
        from server.privacy.unmasking import relayed

        privacy = self.sites.settings.privacy
        self.needed = threshold(len(names), privacy.quorum, privacy.colluders)
        holders = holders_of(roster, bytes.fromhex(roster_hash(roster)))
        shares = self.sum._shares(roster, said, self.needed)
        told = said | {"phase": "train", "secure.sites": ",".join(names)}
        told |= {"secure.bits": json.dumps({"x": BITS})}
        masked_schema = ReplySchema({"masked": {"vector": (LENGTH,)}})
        self.masked = self.sites({name: Payload(asked, told) for name in names}, MASKED, masked_schema)
        stayed = said | {"secure.survivors": ",".join(sorted(self.masked))}
        signed_by = self.sites({name: Payload({}, stayed) for name in self.masked}, SIGN, ReplySchema({}))
        signatures = {name: str(update.facts["signature"]) for name, update in signed_by.items()}
        told = said | {"secure.signatures": json.dumps(signatures)}
        letters = {n: Payload({"secure": relayed(n, holders, shares, 82)}, told) for n in signatures}
        rows = len(names)
        schema = ReplySchema({"secure": {"shares": (rows, 33), "whole": (rows,)}})
        self.given = self.sites(letters, UNMASK, schema)
        contexts = [str(update.facts["context"]) for update in self.masked.values()]
        self.opening = Opening(
            session_of(self.sites.run, self.sites.number, self.sites.label),
            max(contexts, key=contexts.count),
            roster,
            holders,
            shares,
            frozenset(self.masked),
            self.given,
            share_threshold(len(names), self.needed),
        )

    def opened(self) -> np.ndarray | None:
        """Return the total that it can make of what it has."""
        assert self.opening is not None
        total = np.zeros(LENGTH, np.uint64)
        for update in self.masked.values():
            total += update.groups["masked"]["vector"]
        reason = self.opening.remove_masks(total, lambda name, why: None)
        return None if reason else from_ring(total, BITS)


def test_the_greedy_server_opens_an_honest_sum(tmp_path: Path) -> None:
    # else the attacks above would prove nothing
    values = values_of(8)
    greedy = Greedy(Sites(tmp_path, values, settings=settings_of(colluders=1)))
    greedy.run()
    found = greedy.opened()
    assert found is not None and np.allclose(found, sum(values.values()), atol=1e-9)


@pytest.mark.parametrize("count", [3, 8])
def test_one_colluding_site_does_not_open_another_by_another_model(tmp_path: Path, count: int) -> None:
    # the ally signs whatever the server wants: also what the victim was asked
    values = values_of(count)
    contexts: dict[str, str] = {}

    def tamper(name: str, action: str, letter: Payload) -> Payload:
        return other_model(letter) if name == VICTIM and action == MASKED else letter

    def spoil(name: str, action: str, update: wire.Update) -> wire.Update:
        if action == MASKED:
            contexts[name] = str(update.facts["context"])
        if action == SIGN and name == ALLY:
            key = identity_key(sites.site(ALLY))
            update.facts["signature"] = signed(key, survivors_statement(contexts[VICTIM], values))
        return update

    sites = Sites(tmp_path, values, tamper=tamper, spoil=spoil, settings=settings_of(colluders=1))
    greedy = Greedy(sites)
    greedy.run()
    assert VICTIM not in greedy.given
    assert "2 sites have signed" in sites.refused[VICTIM]
    found = greedy.opened()
    assert found is None or not np.isclose(found, sum(values.values()), atol=1).any()


def test_one_colluding_site_of_three_does_not_open_another_by_a_site_that_is_said_to_be_lost(
    tmp_path: Path,
) -> None:
    # the third one is honest and there, but the server tells the victim that it is gone
    def tamper(name: str, action: str, letter: Payload) -> Payload:
        if action == SIGN:
            return option("secure.survivors", f"{VICTIM},{ALLY}")(letter)
        return letter

    sites = Sites(tmp_path, values_of(3), tamper=tamper, settings=settings_of(colluders=1))
    assert sites.total().vector is None
    assert "3 are needed" in sites.refused[VICTIM] and "nothing was signed" in sites.refused[VICTIM]
    assert not gave_shares(sites, VICTIM)


@pytest.mark.parametrize("count", [8, pytest.param(20, marks=pytest.mark.long)])
def test_inconsistent_lists_of_survivors_open_nothing(tmp_path: Path, count: int) -> None:
    """Half of the sites hear that one is lost, half that another is: both secrets of either would come back."""
    names = sorted(values_of(count))
    half = set(names[: count // 2])

    def tamper(name: str, action: str, letter: Payload) -> Payload:
        if action != SIGN:
            return letter
        gone = names[-1] if name in half else names[0]
        return option("secure.survivors", ",".join(n for n in names if n != gone))(letter)

    sites = Sites(tmp_path, values_of(count), tamper=tamper, settings=settings_of(colluders=1))
    greedy = Greedy(sites)
    greedy.run()
    assert not greedy.given
    assert (
        sum("asked the same as this one for the same total" in why for why in sites.refused.values())
        >= count - 2
    )
    assert greedy.opened() is None


def some(letter: Payload, keep: int) -> Payload:
    known = json.loads(str(letter.options["secure.signatures"]))
    return option("secure.signatures", json.dumps(dict(sorted(known.items())[:keep])))(letter)


def forged(letter: Payload) -> Payload:
    known = json.loads(str(letter.options["secure.signatures"]))
    stranger = ec.generate_private_key(CURVE)
    return option("secure.signatures", json.dumps({name: signed(stranger, b"whatever") for name in known}))(
        letter
    )


def one_signature_for_all(letter: Payload) -> Payload:
    known = json.loads(str(letter.options["secure.signatures"]))
    return option("secure.signatures", json.dumps(dict.fromkeys(known, known[VICTIM])))(letter)


@pytest.mark.parametrize("count", [3, 8, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "change",
    [
        lambda letter: some(letter, 0),
        lambda letter: some(letter, 2),
        forged,
        one_signature_for_all,
        option("secure.signatures", "{}"),
    ],
    ids=["none", "too few", "forged", "one for all", "empty"],
)
def test_without_the_others_signatures_nothing_is_given(
    tmp_path: Path, change: Callable[[Payload], Payload], count: int
) -> None:
    sites = attacked(tmp_path, count, UNMASK, change)
    assert not gave_shares(sites, VICTIM)
    assert "nothing was given away" in sites.refused[VICTIM]


def with_roster(change: Callable[[dict[str, dict[str, object]]], None]) -> Callable[[Payload], Payload]:
    def apply(letter: Payload) -> Payload:
        roster = json.loads(str(letter.options["secure.roster"]))
        change(roster)
        return option("secure.roster", json.dumps(roster))(letter)

    return apply


def invented(session: str, name: str) -> dict[str, object]:
    mask, cipher, identity = (ec.generate_private_key(CURVE) for _ in range(3))
    own = Announcement(public_hex(mask), public_hex(cipher), public_hex(identity), 0, "")
    return vars(replace(own, signature=signed(identity, own.statement(session, name))))


def swap_keys(roster: dict[str, dict[str, object]]) -> None:
    roster[ALLY]["mask"] = public_hex(ec.generate_private_key(CURVE))


def swap_cipher(roster: dict[str, dict[str, object]]) -> None:
    roster[ALLY]["cipher"] = public_hex(ec.generate_private_key(CURVE))


def own_key_changed(roster: dict[str, dict[str, object]]) -> None:
    roster[VICTIM] = invented(session_of("run", 3, "s"), VICTIM)


def under_two_names(roster: dict[str, dict[str, object]]) -> None:
    roster["twin"] = roster[ALLY]


def without_victim(roster: dict[str, dict[str, object]]) -> None:
    del roster[VICTIM]


def victim_alone(roster: dict[str, dict[str, object]]) -> None:
    for name in list(roster):
        if name != VICTIM:
            del roster[name]


def broken_entry(roster: dict[str, dict[str, object]]) -> None:
    roster[ALLY] = {"mask": 3}


def numbers_for_keys(roster: dict[str, dict[str, object]]) -> None:
    roster[ALLY] |= {"mask": 3, "signature": ["x"]}


def other_exponent(roster: dict[str, dict[str, object]]) -> None:
    roster[ALLY]["exponent"] = 50


ROSTERS = {
    "a swapped mask key": (swap_keys, "not signed"),
    "a swapped cipher key": (swap_cipher, "not signed"),
    "this site's own key changed": (own_key_changed, "own keys"),
    "a site under two names": (under_two_names, "twice"),
    "without this site": (without_victim, "own keys"),
    "this site alone": (victim_alone, "needs"),
    "an entry that is none": (broken_entry, "cannot be read"),
    "numbers for keys": (numbers_for_keys, "no point"),
    "another exponent": (other_exponent, "not signed"),
}


@pytest.mark.parametrize("count", [3, 8])
@pytest.mark.parametrize("what", sorted(ROSTERS))
def test_a_list_of_members_that_is_not_theirs_is_refused(tmp_path: Path, what: str, count: int) -> None:
    change, word = ROSTERS[what]
    sites = attacked(tmp_path, count, SHARES, with_roster(change))
    assert word in sites.refused[VICTIM]
    assert not any(who == VICTIM and action in (SHARES, MASKED) for who, action, _ in sites.seen)


def test_keys_of_an_earlier_sum_are_refused(tmp_path: Path) -> None:
    first = attacked(tmp_path, 3, SHARES, lambda letter: letter)
    old = {name: dict(update.facts) for name, action, update in first.seen if action == KEYS}

    def replay(roster: dict[str, dict[str, object]]) -> None:
        roster[ALLY] = old[ALLY]

    sites = attacked(tmp_path, 3, SHARES, with_roster(replay), label="t")
    assert "not signed" in sites.refused[VICTIM]


@pytest.mark.parametrize("key", ["run", "number", "label"])
def test_another_run_round_or_sum_is_another_session(key: str) -> None:
    said: dict[str, object] = {"run": "run", "number": 3, "label": "s"}
    other = said | {key: 4 if key == "number" else "else"}
    assert session_of(*said.values()) != session_of(*other.values())  # type: ignore[arg-type]
    assert hashed("a", "bc") != hashed("ab", "c")


def members_file(folder: Path, sites: Sites, least: str = "") -> Path:
    known = {name: fingerprint(public_hex(identity_key(sites.site(name)))) for name in sites.values}
    path = folder / "members"
    path.write_text(f"# name fingerprint\n{least}\n" + "".join(f"{n} {f}  # key\n" for n, f in known.items()))
    return path


def test_a_server_cannot_invent_members_where_a_site_has_their_list(tmp_path: Path) -> None:
    def invents(roster: dict[str, dict[str, object]]) -> None:
        for name in ("site-10", "site-11", "site-12"):
            roster[name] = invented(session_of("run", 3, "s"), name)

    sites = Sites(tmp_path, values_of(3))
    path = members_file(tmp_path, sites)
    # without the list it takes them for sites
    free = attacked(tmp_path / "free", 3, SHARES, with_roster(invents))
    assert "has shape (5," in free.refused[VICTIM]  # it gave shares to five others
    found = attacked(tmp_path, 3, SHARES, with_roster(invents), members={VICTIM: path})
    assert "this site's list of members" in found.refused[VICTIM]
    assert not any(who == VICTIM and action == SHARES for who, action, _ in found.seen)


def test_a_server_cannot_put_another_key_in_a_members_place(tmp_path: Path) -> None:
    def replaces(roster: dict[str, dict[str, object]]) -> None:
        roster[ALLY] = invented(session_of("run", 3, "s"), ALLY)

    path = members_file(tmp_path, Sites(tmp_path, values_of(3)))
    found = attacked(tmp_path, 3, SHARES, with_roster(replaces), members={VICTIM: path})
    assert f"a member {ALLY}" in found.refused[VICTIM]


def test_the_list_of_members_says_of_how_many_sites_a_sum_is(tmp_path: Path) -> None:
    sites = Sites(tmp_path, values_of(4), settings=settings_of(colluders=1))
    sites.members = {VICTIM: members_file(tmp_path, sites, "at-least 4")}
    assert sites.total().vector is not None
    sites.label = "t"
    assert sites.total([name for name in sites.values if name != "site-03"]).vector is None
    assert "wants 4" in sites.refused[VICTIM]


@pytest.mark.parametrize("text", ["a", "a SHA256:short", "a b c", "at-least x", "\nat-least -1", "\udcff"])
def test_a_wrong_list_of_members_is_refused_by_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "members"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="list of members"):
        read_members(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_members(tmp_path / "none")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_a_registered_key_signs_and_has_the_fingerprint_of_openssh(
    tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    import base64
    import hashlib

    key = ec.generate_private_key(curve)
    form = serialization.PrivateFormat.OpenSSH
    path = tmp_path / "site.key"
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    site = Sites(tmp_path, {}).site("a").model_copy(update={"key": path})
    found = identity_key(site)
    public = found.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    digest = base64.b64encode(hashlib.sha256(base64.b64decode(public.split()[1])).digest()).decode()
    assert fingerprint(public_hex(found)) == "SHA256:" + digest.rstrip("=")
    session = session_of("run", 1, "train")
    own = Announcement(
        *[public_hex(ec.generate_private_key(CURVE)) for _ in range(2)], public_hex(found), 0, ""
    )
    own = replace(own, signature=signed(found, own.statement(session, "a")))
    assert own.fault(session, "a") is None
    assert own.fault(session, "b") is not None and own.fault(session_of("run", 2, "train"), "a") is not None


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN OPENSSH PRIVATE KEY-----\n"])
def test_a_key_that_cannot_be_read_is_named_as_a_setting(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret-name.key"
    path.write_bytes(content)
    site = Sites(tmp_path, {}).site("a").model_copy(update={"key": path})
    with pytest.raises(UserError, match="site setting 'key'") as caught:
        identity_key(site)
    assert "secret-name" not in str(caught.value)


def test_own_masks_are_of_one_sum() -> None:
    streams = []
    for session in ("a", "b"):
        total = np.zeros(4, np.uint64)
        add_own_mask(total, bytes(32), session)
        streams.append(total.tobytes())
    assert streams[0] != streams[1]
