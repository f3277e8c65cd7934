"""What does a site refuse under secure summation, and do masks cancel whoever is lost?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from client.privacy.secure_site import answer_keys, answer_shares, answer_unmask, mask_summands
from client.site import SiteConfig
from common import wire
from common.errors import UserError
from common.privacy.secure_masks import from_ring, own_mask, pair_mask, site_mask, threshold
from common.settings.load import load_config
from server.privacy.secure_sum import SecureTotal, secure_total
from server.transport.exchange import Payload
from server.transport.reply_checks import ReplySchema

SETTINGS = load_config({"privacy.secure-sum": True})
LENGTH = 5
BITS = 40
Spoil = Callable[[str, str, wire.Update], wire.Update]


@dataclass
class Sites:
    """Sites in folders of their own that answer letters without a network."""

    folder: Path
    values: dict[str, np.ndarray]
    lost: Mapping[str, set[str]] = field(default_factory=dict)
    spoil: Spoil = lambda name, action, update: update
    seen: list[tuple[str, str, wire.Update]] = field(default_factory=list)

    def site(self, name: str) -> SiteConfig:
        return SiteConfig(name=name, shards=(), cache_dir=self.folder, state_dir=self.folder)

    def answer(self, name: str, action: str, letter: Payload) -> wire.Update:
        task = wire.Task(3, "", "run", letter.groups, letter.options)
        site = self.site(name)
        if action == wire.TRAIN:
            groups = mask_summands({"x/x": self.values[name]}, task, site)
            return wire.Update(name, "", groups, facts={"images": 1})
        handler = {
            wire.SECURE_KEYS: answer_keys,
            wire.SECURE_SHARES: answer_shares,
            wire.SECURE_UNMASK: answer_unmask,
        }[action]
        return handler(task, SETTINGS, site)

    def __call__(
        self, letters: Mapping[str, Payload], action: str, expectation: ReplySchema
    ) -> dict[str, wire.Update]:
        found = {}
        for name, letter in letters.items():
            if action in self.lost.get(name, ()):
                continue
            update = self.spoil(name, action, self.answer(name, action, letter))
            assert expectation.fault(update) is None, expectation.fault(update)
            self.seen.append((name, action, update))
            found[name] = update
        return found

    def total(self) -> SecureTotal:
        return secure_total(
            {name: Payload() for name in self.values},
            wire.TRAIN,
            self,
            length=LENGTH,
            bits=lambda keys: {"x": BITS},
            scale=False,
            session="run/3/s",
            label="s",
            quorum=SETTINGS.privacy.quorum,
            weights_hash="",
        )


def values_of(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    return {f"site-{i}": rng.normal(size=LENGTH) for i in range(count)}


AFTER = {
    "keys": {wire.SECURE_KEYS, wire.SECURE_SHARES, wire.TRAIN, wire.SECURE_UNMASK},
    "shares": {wire.SECURE_SHARES, wire.TRAIN, wire.SECURE_UNMASK},
    "masks": {wire.TRAIN, wire.SECURE_UNMASK},
    "end": {wire.SECURE_UNMASK},
}


@pytest.mark.parametrize("count", [2, 3, 8])
def test_nobody_lost(tmp_path: Path, count: int) -> None:
    values = values_of(count)
    found = Sites(tmp_path, values).total()
    assert found.vector is not None
    assert np.allclose(from_ring(found.vector, BITS), sum(values.values()), atol=1e-10)


@effort(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from(sorted(AFTER)), min_size=2, max_size=2), st.permutations(range(8)))
def test_any_two_of_eight_lost_anywhere(
    tmp_path_factory: pytest.TempPathFactory, when: list[str], order: list[int]
) -> None:
    values = values_of(8)
    lost = {f"site-{i}": AFTER[w] for i, w in zip(order, when, strict=False)}
    found = Sites(tmp_path_factory.mktemp("sites"), values, lost).total()
    assert found.vector is not None, found.reason
    inside = [name for name in values if wire.TRAIN not in lost.get(name, ())]
    assert sorted(found.replies) == inside
    assert np.allclose(from_ring(found.vector, BITS), sum(values[name] for name in inside), atol=1e-10)


@pytest.mark.parametrize("when", sorted(AFTER))
def test_three_of_eight_lost_give_no_total(tmp_path: Path, when: str) -> None:
    lost = {f"site-{i}": AFTER[when] for i in (1, 4, 7)}
    found = Sites(tmp_path, values_of(8), lost).total()
    if when == "keys":  # they were never part of it: five that stay are enough for five
        assert found.vector is not None
    else:
        assert found.vector is None and "6 are needed" in found.reason


def test_one_site_alone_is_not_summed(tmp_path: Path) -> None:
    sites = Sites(tmp_path, values_of(1))
    assert sites.total().vector is None
    assert [action for _, action, _ in sites.seen] == [wire.SECURE_KEYS]


def test_what_a_site_sends_says_nothing_of_its_numbers(tmp_path: Path) -> None:
    # the same numbers twice: other masks; and bits of either message are as often set as not
    sent = []
    for run in range(2):
        sites = Sites(tmp_path / str(run), dict.fromkeys(values_of(3), np.zeros(LENGTH)))
        sites.total()
        sent += [u.groups["masked"]["vector"] for _, action, u in sites.seen if action == wire.TRAIN]
    assert len({vector.tobytes() for vector in sent}) == len(sent)
    bits = np.unpackbits(np.concatenate(sent).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 0.06


def wrong_shares(action: str, lost: Mapping[str, set[str]], tmp_path: Path) -> SecureTotal:
    def spoil(name: str, done: str, update: wire.Update) -> wire.Update:
        if name == "site-0" and done == action:
            shares = update.groups["secure"]["shares"].copy()
            shares[:, 20] ^= 1
            update.groups["secure"]["shares"] = shares
        return update

    return Sites(tmp_path, values_of(4), lost, spoil).total()


@pytest.mark.parametrize("lost", [{}, {"site-2": AFTER["masks"]}])
def test_wrong_shares_are_noticed(tmp_path: Path, lost: dict[str, set[str]]) -> None:
    found = wrong_shares(wire.SECURE_UNMASK, lost, tmp_path)
    assert found.vector is None and "do not fit together" in found.reason


def test_spoilt_ciphertexts_are_noticed_by_the_receiver(tmp_path: Path) -> None:
    from cryptography.fernet import InvalidToken

    with pytest.raises(InvalidToken):
        wrong_shares(wire.SECURE_SHARES, {}, tmp_path)


def until_masked(tmp_path: Path) -> tuple[Sites, dict[str, Payload]]:
    """Run a sum and return the letters of its last phase."""
    sites = Sites(tmp_path, values_of(4))
    kept: dict[str, Payload] = {}

    class Stop(Exception):
        pass

    def post(letters: Mapping[str, Payload], action: str, expectation: ReplySchema) -> dict[str, wire.Update]:
        if action == wire.SECURE_UNMASK:
            kept.update(letters)
            raise Stop
        return sites(letters, action, expectation)

    with pytest.raises(Stop):
        secure_total(
            {name: Payload() for name in sites.values},
            wire.TRAIN,
            post,
            length=LENGTH,
            bits=lambda keys: {"x": BITS},
            scale=False,
            session="run/3/s",
            label="s",
            quorum=0.66,
            weights_hash="",
        )
    return sites, kept


def test_a_site_gives_shares_once_and_only_with_the_quorum(tmp_path: Path) -> None:
    sites, letters = until_masked(tmp_path)
    letter = letters["site-1"]
    few = Payload(letter.groups, letter.options | {"secure.survivors": "site-0,site-1"})
    with pytest.raises(UserError, match="nothing was given away"):
        sites.answer("site-1", wire.SECURE_UNMASK, few)
    without = Payload(letter.groups, letter.options | {"secure.survivors": "site-0,site-2,site-3"})
    with pytest.raises(UserError, match="nothing was given away"):
        sites.answer("site-1", wire.SECURE_UNMASK, without)
    sites.answer("site-1", wire.SECURE_UNMASK, letter)
    other = Payload(letter.groups, letter.options | {"secure.survivors": "site-0,site-1,site-2"})
    with pytest.raises(UserError, match="only once"):
        sites.answer("site-1", wire.SECURE_UNMASK, other)


def test_the_same_secrets_never_mask_two_vectors(tmp_path: Path) -> None:
    sites, _ = until_masked(tmp_path)
    options: wire.Options = {
        "secure.session": "s",
        "secure.sites": "site-0,site-1,site-2,site-3",
        "secure.bits": json.dumps({"x": BITS}),
    }
    with pytest.raises(UserError, match="nothing was sent"):
        sites.answer("site-1", wire.TRAIN, Payload({}, options))


def test_shares_are_given_once(tmp_path: Path) -> None:
    sites, _ = until_masked(tmp_path)
    with pytest.raises(UserError, match="twice"):
        sites.answer("site-1", wire.SECURE_SHARES, Payload({}, {"secure.session": "s"}))


def test_another_sum_and_missing_secrets_are_refused(tmp_path: Path) -> None:
    sites, letters = until_masked(tmp_path)
    other = Payload(letters["site-1"].groups, letters["site-1"].options | {"secure.session": "t"})
    with pytest.raises(UserError, match="another secure sum"):
        sites.answer("site-1", wire.SECURE_UNMASK, other)
    sites.folder = tmp_path / "elsewhere"
    with pytest.raises(UserError, match="no secrets"):
        sites.answer("site-1", wire.SECURE_UNMASK, letters["site-1"])


def test_a_list_without_this_sites_own_key_is_refused(tmp_path: Path) -> None:
    sites = Sites(tmp_path, values_of(3))
    said: wire.Options = {"secure.session": "s"}
    keys = {
        name: np.concatenate(
            list(sites.answer(name, wire.SECURE_KEYS, Payload({}, said)).groups["secure"].values())
        )
        for name in sites.values
    }
    false = keys | {"site-1": keys["site-2"]}
    for wrong in (false, {"site-1": keys["site-1"]}, {k: keys[k] for k in ("site-0", "site-2")}):
        with pytest.raises(UserError, match="takes no part"):
            sites.answer("site-1", wire.SECURE_SHARES, Payload({"keys": wrong}, said))


def test_the_quorum_is_that_of_the_beginning(tmp_path: Path) -> None:
    sites, letters = until_masked(tmp_path)
    letter = letters["site-1"]
    task = wire.Task(3, "", "run", letter.groups, letter.options | {"secure.survivors": "site-0,site-1"})
    lower = load_config({"privacy.secure-sum": True, "privacy.quorum": 0.51})
    with pytest.raises(UserError, match="3 are needed"):
        answer_unmask(task, lower, sites.site("site-1"))


def test_numbers_that_do_not_fit_are_not_sent(tmp_path: Path) -> None:
    sites = Sites(tmp_path, values_of(3) | {"site-1": np.array([0, 0, np.nan, 0, 0])})
    with pytest.raises(UserError, match="do not fit into a secure sum"):
        sites.total()


def test_secrets_are_readable_by_their_owner_only_and_go_when_they_are_used(tmp_path: Path) -> None:
    sites = Sites(tmp_path, values_of(3))
    sites.total()
    path = tmp_path / "site-1" / "secure-sum.json"
    assert path.stat().st_mode & 0o077 == 0
    kept = json.loads(path.read_text())
    assert kept["answered"] and kept["keys"]
    assert [kept[name] for name in ("seed", "mask_key", "cipher_key", "own_shares")] == ["", "", "", []]


def test_what_hides_a_sites_numbers_is_gone_when_a_sum_fails(tmp_path: Path) -> None:
    lost = {"site-1": AFTER["masks"], "site-2": AFTER["masks"]}
    assert Sites(tmp_path, values_of(3), lost).total().vector is None
    kept = json.loads((tmp_path / "site-0" / "secure-sum.json").read_text())
    assert kept["included"] and not kept["answered"]
    assert kept["seed"] == kept["mask_key"] == ""  # its numbers have left, masked by these


@pytest.mark.parametrize(
    ("sites", "quorum", "needed"),
    [
        (1, 0.66, 2),
        (2, 0.66, 2),
        (3, 0.66, 2),
        (4, 0.66, 3),
        (8, 0.66, 6),
        (8, 0.75, 6),
        (8, 1.0, 8),
        (100, 0.51, 51),
    ],
)
def test_thresholds(sites: int, quorum: float, needed: int) -> None:
    assert threshold(sites, quorum) == needed


@pytest.mark.parametrize("count", [2, 5])
def test_pairs_cancel_in_the_total(count: int) -> None:
    names = [f"s{i}" for i in range(count)]
    key = {
        frozenset((a, b)): bytes([i, j] * 16)
        for i, a in enumerate(names)
        for j, b in enumerate(names)
        if i < j
    }
    seeds = {name: bytes([i] * 32) for i, name in enumerate(names)}
    total = np.zeros(LENGTH, np.uint64)
    for name in names:
        pairs = {other: key[frozenset((name, other))] for other in names if other != name}
        total += site_mask(seeds[name], pairs, "session", name, LENGTH)
    for name in names:
        total -= own_mask(seeds[name], "session", LENGTH)
    assert not total.any()
    assert pair_mask(bytes(32), "a", "b", LENGTH).any()
