"""Does a whole federation under secure summation give what the plain one gives, and survive lost sites?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Message

from client.ledger import read_egress
from common import wire
from common.checkpoint import load_checkpoint
from common.settings.privacy import Privacy
from server.loop.run import run
from tests.support.federation import local_grid, metrics, tiny_config
from tests.support.local_grid import Answer

pytestmark = pytest.mark.slow

SITES = 8
WAYS = ("bytes_up", "bytes_down")
Real = Callable[[Message], Message]


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.scenes import write_synthetic

    folder = tmp_path_factory.mktemp("eight")
    write_synthetic(folder, sites=SITES, images_per_site=4, eval_images=3, size=(72, 96), seed=0)
    return folder


def start(folder: Path, out: Path, faults: dict[int, Any] | None = None, **settings: Any) -> Path:
    grid = local_grid(SITES)
    for index, node in enumerate(grid.get_node_ids()):
        if faults and index in faults:
            grid.faults[node] = faults[index]
    base: dict[str, Any] = {"sites__deadline_seconds": 1.0, "model__clusters": 6, "model__dim": 4}
    base |= {"eval__where": "none", "model__stages": "6,13"}
    return run(grid, tiny_config(folder, out, SITES, **(base | settings)))


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    "settings",
    [
        {"rounds": 4, "centroids__polish_passes": 1},
        {"preset": "fuss-clean", "centroids__merge": "lloyd", "rounds": 2},
        {"preset": "fuss-ref", "centroids__merge": "mean", "rounds": 2, "aggregation__optimizer": "adam"},
        {
            "preset": "label-free",
            "model__pixels": 0,
            "codes__reach": 30.0,
            "centroids__over": 12,
            "rounds": 3,
        },
    ],
    ids=["default", "trained, lloyd", "trained, mean", "label-free"],
)
def test_the_model_is_that_of_the_plain_run(tmp_path: Path, eight: Path, settings: dict[str, Any]) -> None:
    plain = start(eight, tmp_path / "plain", **settings)
    secure = start(eight, tmp_path / "secure", privacy__secure_sum=True, **settings)
    expected, found = load_checkpoint(plain), load_checkpoint(secure)
    for name, value in expected.head.items():
        assert relative(found.head[name], value) <= 1e-4, name
    assert relative(found.centroids, expected.centroids) <= 1e-4
    for one, other in zip(metrics(plain), metrics(secure), strict=True):
        assert one["sites"] == other["sites"] and other["counted"]
        assert other["loss"] is None if one["loss"] is None else abs(other["loss"] - one["loss"]) < 1e-4


def test_it_costs_at_most_three_times_the_bytes_at_full_size(tmp_path: Path, eight: Path) -> None:
    settings: dict[str, Any] = {
        "model__clusters": 27,
        "model__dim": 24,
        "model__stages": "13,17",
        "rounds": 2,
    }
    sums, heads = [], []
    for secure in (False, True):
        run_dir = start(eight, tmp_path / str(secure), privacy__secure_sum=secure, **settings)
        found = metrics(run_dir)
        sums.append([sum(line[way][name] for line in found for name in line[way]) for way in WAYS])
        heads.append(load_checkpoint(run_dir).head)
        for line in found[1:]:  # also the small messages of the later rounds, one by one
            sums[-1] += [sum(line[way].values()) for way in WAYS]
    assert all(secure <= 3 * plain for plain, secure in zip(*sums, strict=True))
    assert all(relative(heads[1][name], value) <= 1e-4 for name, value in heads[0].items())


def lost_at(*actions: str) -> Callable[[Message, Real], Answer]:
    """Return a site that does not answer these actions in round 2."""

    def fault(message: Message, real: Real) -> Answer:
        if message.metadata.group_id == "2" and message.metadata.message_type in actions:
            return None
        return real(message)

    return fault


SIGN, UNMASK = (
    "query.secure_consistency",
    "query.secure_unmask",
)  # losses before the shares: tests/client/privacy/test_secure_site.py


@pytest.mark.parametrize(
    ("lost", "in_total"),
    [(("train", SIGN, UNMASK), 6), ((SIGN, UNMASK), 8)],
    ids=["after the shares", "after the masked sums"],
)
def test_a_round_without_two_of_eight_counts(
    tmp_path: Path, eight: Path, lost: tuple[str, ...], in_total: int
) -> None:
    faults = {1: lost_at(*lost), 6: lost_at(*lost)}
    settings: dict[str, Any] = {"privacy__secure_sum": True, "rounds": 2}
    secure = start(eight, tmp_path / "secure", faults, **settings)
    found = metrics(secure)[1]
    assert found["counted"] and len(found["sites"]) == in_total
    assert len(found["quarantined"]) == 8 - in_total
    plain_faults = {i: lost_at("train") for i in faults} if in_total == 6 else None
    plain = start(eight, tmp_path / "plain", plain_faults, rounds=2)
    assert relative(load_checkpoint(secure).centroids, load_checkpoint(plain).centroids) <= 1e-4


def test_the_noise_that_is_reckoned_with_is_that_of_the_sites_that_sent_keys(
    tmp_path: Path, eight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.privacy import totals

    reckoned: list[float] = []
    clean = totals.clean_groups

    def noted(noisy: totals.NoisyTotal, privacy: Privacy) -> wire.Groups:
        reckoned.append(noisy.deviation)
        return clean(noisy, privacy)

    monkeypatch.setattr(totals, "clean_groups", noted)
    noise = {"noise_multiplier": 2.0, "clip_sums": 1.0, "clip_scatter": 0.25, "feature_norm": 10.0}
    settings = {f"privacy__{key}": value for key, value in noise.items()} | {"privacy__unit": "image"}
    start(eight, tmp_path, {3: lost_at("query.secure_keys")}, privacy__secure_sum=True, rounds=2, **settings)
    # of eight sites six have to stay, of the seven that sent keys in round 2 five; all of them add their part
    assert reckoned == pytest.approx([2 * (8 / 6) ** 0.5, 2 * (7 / 5) ** 0.5])


def lies(action: str, group: str, key: str) -> Callable[[Message, Real], Answer]:
    """Return a site that sends noise in the place of one array, in every round."""

    def fault(message: Message, real: Real) -> Answer:
        reply = real(message)
        if message.metadata.message_type == action:
            found = reply.content.array_records[group]
            value = found[key].numpy()
            drawn = np.frombuffer(np.random.default_rng(0).bytes(value.nbytes), value.dtype)
            found[key] = Array(drawn.reshape(value.shape))
        return reply

    return fault


@pytest.mark.parametrize(
    ("fault", "reason", "others"),
    [
        (lies(UNMASK, "secure", "shares"), "not the one that it got", 7),
        (lies("query.secure_shares", "secure", "shares"), "cannot be opened", 7),
        (lies("train", "masked", "vector"), "spoils their sum", 4),
    ],
    ids=["wrong shares given", "wrong shares sealed", "numbers of noise"],
)
def test_a_site_that_lies_ends_no_run_and_is_named(
    tmp_path: Path, eight: Path, fault: Callable[[Message, Real], Answer], reason: str, others: int
) -> None:
    found = metrics(start(eight, tmp_path, {1: fault}, privacy__secure_sum=True, rounds=2))
    for line in found:
        assert line["counted"] and len(set(line["sites"]) - {"site-1"}) >= others
        assert reason in line["quarantined"]["site-1"]
        assert all("one of 4 sites" in why for name, why in line["quarantined"].items() if name != "site-1")


def test_without_the_quorum_a_round_does_not_count(tmp_path: Path, eight: Path) -> None:
    faults = {i: lost_at("train", SIGN, UNMASK) for i in (0, 3, 5)}
    found = metrics(start(eight, tmp_path / "run", faults, privacy__secure_sum=True, rounds=3))
    assert [line["counted"] for line in found] == [True, False, True]


def test_the_ledger_names_masked_numbers_and_nothing_plain(tmp_path: Path, eight: Path) -> None:
    before = {path: len(read_egress(path.parent)) for path in eight.rglob("egress.jsonl")}
    start(eight, tmp_path / "run", privacy__secure_sum=True, rounds=2)
    ledgers = list(eight.rglob("egress.jsonl"))
    assert len(ledgers) == SITES
    for path in ledgers:
        new = read_egress(path.parent)[before.get(path, 0) :]
        left = {group for line in new for group in line["bytes"]}  # type: ignore[attr-defined]
        assert left == {"facts", "metrics", "secure", "masked"}
