"""Tests that a new implementation is one new file: it runs, is listed and explained, and refused by its facts."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.support.checkout import Checkout, Done
from tests.support.federation import TINY

pytestmark = pytest.mark.slow

PAGE = dict(
    re.findall(
        r"^`([\w/.]+)`:\n\n```\w+\n(.*?)```$",
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        re.M | re.S,
    )
)
"""The examples of CONTRIBUTING.md, by the file that each of them is."""

RULE = PAGE["server/centroids/still.py"]
OBJECTIVE = PAGE["common/losses/compact.py"]
DATA_SET = PAGE["partitions/sources/halves.py"]
CLASS_TABLE = PAGE["common/data/tables/halves.json"]


def changed(text: str, old: str, new: str) -> str:
    """Return an example with one fact changed."""
    assert old in text
    return text.replace(old, new)


HEAD_RULE = '''"""Takes the head of the first site."""

from server.aggregation.heads import HEAD_RULES, Aggregate, HeadFacts


@HEAD_RULES.register("first", summary="head of the first site by name", facts=HeadFacts(picks=True))
def first(updates, weights, settings):
    """Return the head of one site."""
    name = min(updates)
    return Aggregate(dict(updates[name]), (name,))
'''

CLOSED = '''"""Mirrored spectral objective: the spectral one with its head turned round."""

from common.losses.spectral import Spectral
from common.settings.objectives import OBJECTIVES, ObjectiveFacts


@OBJECTIVES.register(
    "mirrored", summary="the spectral head, turned round", facts=ObjectiveFacts(steps=False, clips=("clip_scatter",))
)
class Mirrored(Spectral):
    """Sends the same sums under another name."""

    kind = "mirror"

    def merge(self, parts):
        """Turn the head round."""
        head, centroids = super().merge(parts)
        return {name: -array for name, array in head.items()}, centroids
'''


BACKBONE = '''"""Mean colors of 8 x 8 pixels."""

import torch

from common.models.backbone import BACKBONES, PER_IMAGE, Backbone, BackboneFacts


@BACKBONES.register(
    "colors", summary="mean colors of 8 x 8 pixels", facts=BackboneFacts(weights_from="", settings=(), stride=None)
)
def load_colors(model, seed):
    """Return a backbone of three channels."""
    return Backbone(torch.nn.AvgPool2d(8), (model.height, model.width), *PER_IMAGE)
'''


FILES = {
    "server/centroids/still.py": RULE,
    "server/centroids/frozen.py": changed(
        changed(RULE, '"still"', '"frozen"'), 'takes="centroids"', 'takes="sums"'
    ),
    "server/centroids/total.py": changed(
        changed(changed(RULE, '"still"', '"total"'), "single_sites=True", "single_sites=False"),
        '"centroids"',
        '"sums"',
    ),
    "server/aggregation/first.py": HEAD_RULE,
    "common/losses/compact.py": OBJECTIVE,
    "common/losses/mirrored.py": CLOSED,
    "common/models/backbones/colors.py": BACKBONE,
    "partitions/sources/halves.py": DATA_SET,
    "common/data/tables/halves.json": CLASS_TABLE,
}


def tiny(**settings: object) -> list[str]:
    """Return the options of the smallest run of one round by gradient steps; ``a__b_c`` stands for ``a.b-c``."""
    given = TINY | {"preset": "fuss-clean", "rounds": 1}
    given |= {key.replace("__", ".").replace("_", "-"): value for key, value in settings.items()}
    return [word for key, value in given.items() for word in ("--set", f"{key}={value}")]


RUNS = {
    "still": tiny(centroids__merge="still"),
    "frozen": tiny(centroids__merge="frozen"),
    "first": tiny(aggregation__rule="first"),
    "compact": [*tiny(loss__objective="compact"), "--set", "loss.compact.pull=2.0"],
    "mirrored": tiny(preset="default", rounds=2, loss__objective="mirrored"),
    "mirrored-secure": tiny(
        preset="default",
        rounds=2,
        loss__objective="mirrored",
        privacy__secure_sum="true",
        privacy__colluders=0,
    ),
    "colors": tiny(model__backbone="colors", model__weights="random"),
    "halves": tiny(local__neighbours=2),
}
SECURE = ("--set", "privacy.secure-sum=true")


@dataclass(frozen=True)
class Additions:
    """What the commands of a copy with all additions did."""

    folder: Path
    done: dict[str, Done]

    def printed(self, *words: str) -> str:
        return self.done[" ".join(words)].printed()

    def refusal(self, *words: str) -> str:
        return self.done[" ".join(words)].refusal()

    def run(self, name: str) -> Path:
        """Return the run directory of a simulation that went well."""
        self.done[name].printed()
        return self.folder / name

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the metrics of a simulation."""
        return [json.loads(text) for text in (self.run(name) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def additions(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Additions:
    """A copy of the packages with one file for each addition; all commands in one process."""
    folder = tmp_path_factory.mktemp("additions")
    checkout = Checkout.copied(folder / "checkout")
    for path, text in FILES.items():
        checkout.add(path, text)
    shards = folder / "shards"
    commands: dict[str, list[str | Path]] = {
        "partitions list": ["partitions", "list"],
        "partitions halves": ["partitions", "halves", "--out", shards],
        "settings": ["server", "settings", "--explain"],
        "total secure": ["server", "settings", *tiny(centroids__merge="total"), *SECURE],
        "wrong rule": ["server", "settings", "--set", "centroids.merge=stil"],
        "wrong setting": ["server", "settings", "--set", "loss.compact.pull=-1"],
    }
    commands |= {f"list {what}": ["server", "list", what] for what in ("rules", "objectives", "backbones")}
    for name in ("still", "first", "compact"):
        commands[f"{name} secure"] = ["server", "settings", *RUNS[name], *SECURE]
    for name, words in RUNS.items():
        images = shards if name == "halves" else scenes
        commands[name] = ["server", "simulate", "--shards", images, "--run-dir", folder / name, *words]
    done = checkout.run(*commands.values())
    return Additions(folder, dict(zip(commands, done, strict=True)))


@pytest.mark.parametrize(("rule", "moves"), [("still", True), ("frozen", False)])
def test_a_new_centroid_rule_is_one_file(additions: Additions, rule: str, moves: bool) -> None:
    (line,) = additions.lines(rule)
    # sites move the centroids that they send, and send sums beside centroids that stay
    assert line["counted"] and (line["displacement"] != 0) == moves
    assert f"#   {rule}: centroids stay as they are" in additions.printed("settings")
    assert re.search(rf"{rule} +centroids stay as they are", additions.printed("list rules"))


def test_a_new_centroid_rule_is_refused_by_its_facts(additions: Additions) -> None:
    private = additions.refusal("still secure")
    assert "centroids.merge 'still'" in private and "lloyd" in private
    assert "Did you mean 'still'?" in additions.refusal("wrong rule")
    assert 'merge = "total"' in additions.printed("total secure"), "a total is enough for it"


def test_a_new_head_rule_is_one_file(additions: Additions) -> None:
    (line,) = additions.lines("first")
    assert line["counted"]
    assert "#   first: head of the first site" in additions.printed("settings")
    assert "aggregation.rule 'first'" in additions.refusal("first secure")


def test_a_new_data_set_is_one_file_and_its_class_table(additions: Additions) -> None:
    listed = additions.printed("partitions list")
    assert "images whose left half is bright" in listed and "halves" in listed.split("class tables:")[1]
    additions.printed("partitions halves")
    partition = json.loads((additions.folder / "shards" / "partition.json").read_text())
    assert partition["sites"] == {"site-0": 5, "site-1": 5}
    assert partition["classes"]["names"] == ["dark", "bright"]
    assert partition["histogram"]["site-0"] == [15360, 15360]
    assert (additions.run("halves") / "checkpoints" / "round-0001.safetensors").is_file()


def test_a_new_backbone_is_one_file(additions: Additions) -> None:
    assert "mean colors of 8 x 8 pixels" in additions.printed("list backbones")
    saved = json.loads((additions.run("colors") / "checkpoints" / "round-0001.json").read_text())
    assert saved["channels"] == 3


def test_a_new_objective_is_one_file(additions: Additions) -> None:
    (line,) = additions.lines("compact")
    assert line["counted"] and line["loss"] > 0
    described = json.loads((additions.run("compact") / "config.json").read_text())
    assert described["loss"]["compact"] == {"pull": 2.0}
    assert "codes stay near the mean" in additions.printed("list objectives")
    explained = additions.printed("settings")
    assert "#   compact: codes stay near the mean" in explained
    assert "# strength of the pull to the mean (> 0)\nloss.compact.pull = 0.5" in explained
    private = additions.refusal("compact secure")
    assert "loss.objective is 'compact'" in private and "single sites" in private
    assert "'loss.compact.pull' is -1" in additions.refusal("wrong setting")


@pytest.mark.parametrize("name", ["mirrored", "mirrored-secure"])
def test_a_new_objective_in_closed_form_is_one_file(additions: Additions, name: str) -> None:
    assert [line["counted"] for line in additions.lines(name)] == [True, True]
