"""Does the benchmark of hostile sites attack what it says, past the server's checks, and count it right?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common import wire
from common.settings.load import load_config, read_recipe
from server.transport.reply_checks import ReplySchema
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import campaign
import hostile


def reply() -> wire.Update:
    rng = np.random.default_rng(0)
    counts = np.array([5, 0, 20])
    return wire.Update(
        "site-3",
        "hash",
        {
            "head": {"linear.weight": rng.standard_normal((4, 6)).astype(np.float32)},
            "centroids": {"centroids": rng.standard_normal((3, 4)).astype(np.float32), "counts": counts},
            "sums": {"sums": np.zeros((3, 4)), "counts": counts, "cosines": np.zeros(3)},
        },
        facts={"images": 7, "batches": 1},
    )


@pytest.mark.parametrize("name", [name for name, attack in hostile.ATTACKS.items() if attack])
def test_attacked_replies_differ_as_named_and_pass_the_servers_checks(name: str) -> None:
    attack = hostile.ATTACKS[name]
    assert attack is not None
    honest = reply()
    sent = attack(honest, np.random.default_rng(1))
    factor = float(name.removeprefix("head x "))
    np.testing.assert_allclose(
        sent.groups["head"]["linear.weight"], factor * honest.groups["head"]["linear.weight"], rtol=1e-6
    )
    for group in ("centroids", "sums"):
        assert not np.allclose(sent.groups[group][group], honest.groups[group][group])
        assert sent.groups[group]["counts"].min() > 100 * honest.groups[group]["counts"].max()
    assert ReplySchema.like(honest.groups, "hash").fault(sent) is None
    assert sent.facts == honest.facts


def test_every_rule_fits_the_recipe_it_is_laid_upon() -> None:
    recipe = read_recipe(campaign.recipe_path("camvid-rule-fedcc-maximin-polish"))
    configs = [load_config(recipe, rule) for rule in hostile.RULES.values()]
    assert len({(c.aggregation.rule, c.centroids.merge) for c in configs}) == len(configs)
    assert all(not c.local.keep_optimizer and not c.local.moon_weight for c in configs)


def test_a_site_is_asked_once_for_the_same(message_of: Callable[[int, float], object]) -> None:
    asked = []

    def answer(message: object) -> object:
        asked.append(message)
        return message

    memory = hostile.Memory()
    for node, value in ((2, 1.0), (2, 1.0), (2, 2.0), (3, 1.0)):
        memory(message_of(node, value), answer)  # type: ignore[arg-type]
    assert len(asked) == 3


@pytest.fixture
def message_of() -> Callable[[int, float], object]:
    from tests.support.local_grid import set_identity

    set_identity()

    def make(node: int, value: float) -> object:
        task = wire.Task(1, "{}", "run", {"head": {"weight": np.full(3, value, dtype=np.float32)}})
        message = wire.make_message(wire.encode_task(task, "float32"), node, wire.TRAIN, 1, 60.0)
        message.metadata.__dict__["_message_id"] = "1"
        return message

    return make


def test_table_tells_the_loss_under_the_worst_attack() -> None:
    found = {
        hostile.Task("recipe", "rule", attack, seed, None, Path("out")): value
        for attack, pair in {
            "nobody": (0.2, 0.3),
            "head x 10": (0.1, 0.18),
            "head x -5": (0.24, 0.24),
        }.items()
        for seed, value in enumerate(pair)
    }
    lines = hostile.table(found, ["rule"], ["nobody", "head x 10", "head x -5"]).splitlines()
    assert lines[-1] == "| rule | 25.0 | 14.0 | 24.0 | 11.0 |"
