"""What does a site refuse under secure summation, and do masks cancel whoever is lost?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from client.privacy.secure_site import answer_unmask
from client.privacy.secure_state import SUMS_FOLDER
from common import wire
from common.errors import UserError
from common.privacy.secure_masks import from_ring, threshold
from server.transport.exchange import Payload
from server.transport.reply_checks import ReplySchema
from tests.support.secure_sites import BITS, LENGTH, Sites, lost_from, settings_of, values_of

WHEN = (wire.SECURE_SHARES, wire.TRAIN, wire.SECURE_CONSISTENCY, wire.SECURE_UNMASK)


@pytest.mark.parametrize(("count", "colluders"), [(2, 0), (3, 0), (3, 1), (8, 1)])
def test_nobody_lost(tmp_path: Path, count: int, colluders: int) -> None:
    values = values_of(count)
    found = Sites(tmp_path, values, settings=settings_of(colluders=colluders)).total()
    assert found.vector is not None
    assert np.allclose(from_ring(found.vector, BITS), sum(values.values()), atol=1e-10)


@effort(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from(WHEN), min_size=2, max_size=2), st.permutations(range(8)))
def test_any_two_of_eight_lost_anywhere(
    tmp_path_factory: pytest.TempPathFactory, when: list[str], order: list[int]
) -> None:
    values = values_of(8)
    lost = {f"site-{i:02}": lost_from(w) for i, w in zip(order, when, strict=False)}
    found = Sites(tmp_path_factory.mktemp("sites"), values, lost).total()
    assert found.vector is not None, found.reason
    inside = [name for name in values if wire.TRAIN not in lost.get(name, ())]
    assert sorted(found.replies) == inside
    assert np.allclose(from_ring(found.vector, BITS), sum(values[name] for name in inside), atol=1e-10)


@pytest.mark.parametrize("when", [wire.SECURE_KEYS, *WHEN])
def test_three_of_eight_lost_give_no_total(tmp_path: Path, when: str) -> None:
    lost = {f"site-{i:02}": lost_from(when) for i in (1, 4, 7)}
    found = Sites(tmp_path, values_of(8), lost).total()
    if when == wire.SECURE_KEYS:  # they were never part of it: five that stay are enough for five
        assert found.vector is not None
    else:
        assert found.vector is None and ("6 are needed" in found.reason or "too few shares" in found.reason)


def test_a_sparse_graph_gives_the_same_total(tmp_path: Path) -> None:
    values = values_of(60)
    lost = {f"site-{5 * i + 2:02}": lost_from(when) for i, when in enumerate(WHEN * 2)}
    found = Sites(tmp_path, values, lost, settings=settings_of(colluders=1)).total()
    assert found.vector is not None, found.reason
    assert len(found.replies) == 56  # those that were lost later are in the total
    assert np.allclose(from_ring(found.vector, BITS), sum(values[n] for n in found.replies), atol=1e-9)


@pytest.mark.parametrize(("count", "colluders"), [(1, 0), (2, 1), (3, 2)])
def test_too_few_sites_to_hide_among_are_not_summed(tmp_path: Path, count: int, colluders: int) -> None:
    sites = Sites(tmp_path, values_of(count), settings=settings_of(colluders=colluders))
    assert sites.total().vector is None
    assert {action for _, action, _ in sites.seen} == {wire.SECURE_KEYS}


def test_what_a_site_sends_says_nothing_of_its_numbers(tmp_path: Path) -> None:
    # the same numbers twice: other masks; and bits of either message are as often set as not
    sent = []
    for run in range(2):
        sites = Sites(tmp_path / str(run), dict.fromkeys(values_of(3), np.zeros(LENGTH)))
        sites.total()
        sent += [u.groups["masked"]["vector"] for _, action, u in sites.seen if action == wire.TRAIN]
    assert len({vector.tobytes() for vector in sent}) == len(sent) == 6
    bits = np.unpackbits(np.concatenate(sent).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 0.06


class Stop(Exception):
    """Ends a sum between two messages."""


def until(action: str, sites: Sites) -> dict[str, Payload]:
    """Run a sum and return the letters of one of its messages, which nobody gets."""
    kept: dict[str, Payload] = {}

    def post(letters: Mapping[str, Payload], done: str, schema: ReplySchema) -> dict[str, wire.Update]:
        if done == action:
            kept.update(letters)
            raise Stop
        return sites(letters, done, schema)

    sites.post = post
    with pytest.raises(Stop):
        sites.total()
    return kept


def four(tmp_path: Path, action: str) -> tuple[Sites, dict[str, Payload]]:
    sites = Sites(tmp_path, values_of(4))
    return sites, until(action, sites)


@pytest.mark.parametrize("stayed", [(0, 1), (0, 2, 3), (0, 1, 2, 9)])
def test_a_site_signs_totals_of_the_quorum_with_itself_only(tmp_path: Path, stayed: tuple[int, ...]) -> None:
    sites, letters = four(tmp_path, wire.SECURE_CONSISTENCY)
    told = letters["site-01"].options | {"secure.survivors": ",".join(f"site-{i:02}" for i in stayed)}
    with pytest.raises(UserError, match="nothing was signed"):
        sites.answer("site-01", wire.SECURE_CONSISTENCY, Payload({}, told))


def test_a_site_signs_one_list_and_gives_shares_once(tmp_path: Path) -> None:
    sites, letters = four(tmp_path, wire.SECURE_UNMASK)
    other: wire.Options = {"secure.session": "s", "secure.survivors": "site-00,site-01,site-02"}
    with pytest.raises(UserError, match="nothing was signed"):
        sites.answer("site-01", wire.SECURE_CONSISTENCY, Payload({}, other))
    sites.answer("site-01", wire.SECURE_UNMASK, letters["site-01"])
    with pytest.raises(UserError, match="again"):
        sites.answer("site-01", wire.SECURE_UNMASK, letters["site-01"])


def test_the_same_secrets_never_mask_two_vectors(tmp_path: Path) -> None:
    sites, _ = four(tmp_path, wire.SECURE_CONSISTENCY)
    options: wire.Options = {
        "secure.session": "s",
        "secure.sites": "site-00,site-01,site-02,site-03",
        "secure.bits": json.dumps({"x": BITS}),
    }
    with pytest.raises(UserError, match="nothing was sent"):
        sites.answer("site-01", wire.TRAIN, Payload({}, options))


def test_shares_are_given_once(tmp_path: Path) -> None:
    sites, _ = four(tmp_path, wire.TRAIN)
    with pytest.raises(UserError, match="twice"):
        sites.answer("site-01", wire.SECURE_SHARES, Payload({}, {"secure.session": "s"}))


def test_another_sum_and_missing_secrets_are_refused(tmp_path: Path) -> None:
    sites, letters = four(tmp_path, wire.SECURE_UNMASK)
    other = Payload(letters["site-01"].groups, letters["site-01"].options | {"secure.session": "t"})
    with pytest.raises(UserError, match="no secrets"):
        sites.answer("site-01", wire.SECURE_UNMASK, other)
    sites.folder = tmp_path / "elsewhere"
    with pytest.raises(UserError, match="no secrets"):
        sites.answer("site-01", wire.SECURE_UNMASK, letters["site-01"])


def test_the_quorum_is_that_of_the_beginning(tmp_path: Path) -> None:
    sites, letters = four(tmp_path, wire.SECURE_UNMASK)
    letter = letters["site-01"]
    known = json.loads(str(letter.options["secure.signatures"]))
    two = {name: known[name] for name in ("site-00", "site-01")}
    told = letter.options | {"secure.signatures": json.dumps(two)}
    task = wire.Task(3, "", "run", letter.groups, told)
    with pytest.raises(UserError, match="3 are needed"):
        answer_unmask(task, settings_of(quorum=0.51, colluders=0), sites.site("site-01"))


def test_numbers_that_do_not_fit_are_not_sent_and_not_told(tmp_path: Path) -> None:
    for wrong in (np.nan, 8011.25 * 2.0**40):
        sites = Sites(tmp_path, values_of(4) | {"site-01": np.array([0, 0, wrong, 0, 0])})
        found = sites.total()
        assert found.vector is not None and sorted(found.replies) == ["site-00", "site-02", "site-03"]
        reason = sites.refused["site-01"]
        assert "do not fit into a secure sum" in reason
        assert not any(character.isdigit() for character in reason)


def state_of(folder: Path, name: str) -> list[Path]:
    return sorted((folder / name / SUMS_FOLDER).glob("*.json"))


def test_secrets_are_readable_by_their_owner_only_and_go_when_they_are_used(tmp_path: Path) -> None:
    sites = Sites(tmp_path, values_of(3))
    sites.total()
    (path,) = state_of(tmp_path, "site-01")
    assert path.stat().st_mode & 0o077 == 0
    kept = json.loads(path.read_text())
    assert kept["answered"] and kept["roster"]
    assert [kept[name] for name in ("seed", "mask_key", "cipher_key", "own_shares")] == ["", "", "", []]


def test_what_hides_a_sites_numbers_is_gone_when_a_sum_fails(tmp_path: Path) -> None:
    lost = {name: lost_from(wire.TRAIN) for name in ("site-01", "site-02")}
    assert Sites(tmp_path, values_of(3), lost).total().vector is None
    (path,) = state_of(tmp_path, "site-00")
    kept = json.loads(path.read_text())
    assert kept["included"] and not kept["answered"]
    assert kept["seed"] == kept["mask_key"] == ""  # its numbers have left, masked by these


def test_two_runs_at_once_do_not_meet(tmp_path: Path) -> None:
    values = values_of(3)
    one, other = (Sites(tmp_path, values, run=run) for run in ("one", "other"))
    letters = [until(wire.SECURE_UNMASK, sites) for sites in (one, other)]  # each waits for its last message
    for sites, letter in zip((one, other), letters, strict=True):
        for name in values:
            assert sites.answer(name, wire.SECURE_UNMASK, letter[name]).groups["secure"]["whole"].all()


def test_the_next_sum_of_a_run_replaces_its_secrets_and_old_runs_go(tmp_path: Path) -> None:
    values = values_of(2)
    for label in ("a", "b"):
        Sites(tmp_path, values, label=label).total()
    assert len(state_of(tmp_path, "site-00")) == 1
    for index in range(20):
        Sites(tmp_path, values, run=str(index)).total()
    assert len(state_of(tmp_path, "site-00")) == 16


@pytest.mark.parametrize(
    ("sites", "quorum", "colluders", "needed"),
    [
        (1, 0.66, 0, 2),
        (2, 0.66, 0, 2),
        (2, 0.66, 1, 3),
        (3, 0.66, 0, 2),
        (3, 0.66, 1, 3),
        (4, 0.66, 1, 3),
        (8, 0.66, 1, 6),
        (8, 0.66, 5, 7),
        (8, 0.75, 1, 6),
        (8, 1.0, 1, 8),
        (100, 0.51, 1, 51),
        (100, 0.51, 30, 66),
    ],
)
def test_thresholds(sites: int, quorum: float, colluders: int, needed: int) -> None:
    assert threshold(sites, quorum, colluders) == needed
