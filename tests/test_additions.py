"""Tests that a new implementation is one new file: it runs, is listed and explained, and refused by its facts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.checkout import Checkout
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


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A copy of the packages, to which a test adds its file."""
    return Checkout.copied(tmp_path / "checkout")


def tiny(**settings: object) -> list[str]:
    """Return the options of the smallest run of one round by gradient steps; ``a__b_c`` stands for ``a.b-c``."""
    given = TINY | {"preset": "fuss-clean", "rounds": 1}
    given |= {key.replace("__", ".").replace("_", "-"): value for key, value in settings.items()}
    return [word for key, value in given.items() for word in ("--set", f"{key}={value}")]


@pytest.mark.parametrize("takes", ["centroids", "sums"])
def test_a_new_centroid_rule_is_one_file(
    checkout: Checkout, scenes: Path, tmp_path: Path, takes: str
) -> None:
    checkout.add("server/centroids/still.py", changed(RULE, 'takes="centroids"', f'takes="{takes}"'))
    words = tiny(centroids__merge="still")
    checkout.simulate("--shards", scenes, "--run-dir", tmp_path / "run", *words)
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert line["counted"] and (line["displacement"] == 0) == (
        takes == "sums"
    )  # sites move centroids, or not
    assert "#   still: centroids stay as they are" in checkout.output("-m", "server", "settings", "--explain")
    assert "centroids stay as they are" in checkout.output("-m", "server", "list", "rules")
    private = checkout.refusal("-m", "server", "settings", *words, "--set", "privacy.secure-sum=true")
    assert "centroids.merge 'still'" in private and "lloyd" in private
    wrong = checkout.refusal("-m", "server", "settings", "--set", "centroids.merge=stil")
    assert "Did you mean 'still'?" in wrong


def test_a_new_rule_that_a_total_is_enough_for_goes_with_secure_summation(checkout: Checkout) -> None:
    checkout.add(
        "server/centroids/still.py",
        changed(changed(RULE, "single_sites=True", "single_sites=False"), '"centroids"', '"sums"'),
    )
    words = tiny(centroids__merge="still", privacy__secure_sum="true")
    assert 'merge = "still"' in checkout.output("-m", "server", "settings", *words)


def test_a_new_head_rule_is_one_file(checkout: Checkout, scenes: Path, tmp_path: Path) -> None:
    checkout.add("server/aggregation/first.py", HEAD_RULE)
    words = tiny(aggregation__rule="first")
    checkout.simulate("--shards", scenes, "--run-dir", tmp_path / "run", *words)
    assert "#   first: head of the first site" in checkout.output("-m", "server", "settings", "--explain")
    private = checkout.refusal("-m", "server", "settings", *words, "--set", "privacy.secure-sum=true")
    assert "aggregation.rule 'first'" in private


BACKBONE = '''"""Mean colors of 8 x 8 pixels."""

import torch

from common.models.backbone import PER_IMAGE, Backbone
from common.models.inputs import BACKBONES, BackboneFacts


@BACKBONES.register(
    "colors", summary="mean colors of 8 x 8 pixels", facts=BackboneFacts(weights_from="", settings=(), stride=None)
)
def load_colors(model, seed):
    """Return a backbone of three channels."""
    return Backbone(torch.nn.AvgPool2d(8), (model.height, model.width), *PER_IMAGE)
'''


def test_a_new_data_set_is_one_file_and_its_class_table(checkout: Checkout, tmp_path: Path) -> None:
    checkout.add("partitions/sources/halves.py", DATA_SET)
    checkout.add("common/data/tables/halves.json", CLASS_TABLE)
    listed = checkout.output("-m", "partitions", "list")
    assert "images whose left half is bright" in listed and "halves" in listed.split("class tables:")[1]
    shards = tmp_path / "shards"
    checkout.output("-m", "partitions", "halves", "--out", shards)
    partition = json.loads((shards / "partition.json").read_text())
    assert partition["sites"] == {"site-0": 5, "site-1": 5}
    assert partition["classes"]["names"] == ["dark", "bright"] and partition["histogram"]["site-0"] == [
        15360,
        15360,
    ]
    checkout.simulate("--shards", shards, "--run-dir", tmp_path / "run", *tiny(local__neighbours=2))
    assert (tmp_path / "run" / "checkpoints" / "round-0001.safetensors").is_file()


def test_a_new_backbone_is_one_file(checkout: Checkout, scenes: Path, tmp_path: Path) -> None:
    checkout.add("common/models/backbones/colors.py", BACKBONE)
    assert "mean colors of 8 x 8 pixels" in checkout.output("-m", "server", "list", "backbones")
    words = tiny(model__backbone="colors", model__weights="random")
    checkout.simulate("--shards", scenes, "--run-dir", tmp_path / "run", *words)
    saved = json.loads((tmp_path / "run" / "checkpoints" / "round-0001.json").read_text())
    assert saved["channels"] == 3


def test_a_new_objective_is_one_file(checkout: Checkout, scenes: Path, tmp_path: Path) -> None:
    checkout.add("common/losses/compact.py", OBJECTIVE)
    words = [*tiny(loss__objective="compact"), "--set", "loss.compact.pull=2.0"]
    checkout.simulate("--shards", scenes, "--run-dir", tmp_path / "run", *words)
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert line["counted"] and line["loss"] > 0
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    assert described["loss"]["compact"] == {"pull": 2.0}
    assert "codes stay near the mean" in checkout.output("-m", "server", "list", "objectives")
    explained = checkout.output("-m", "server", "settings", "--explain")
    assert "#   compact: codes stay near the mean" in explained
    assert "# strength of the pull to the mean (> 0)\nloss.compact.pull = 0.5" in explained
    private = checkout.refusal("-m", "server", "settings", *words, "--set", "privacy.secure-sum=true")
    assert "loss.objective is 'compact'" in private and "single sites" in private
    wrong = checkout.refusal("-m", "server", "settings", "--set", "loss.compact.pull=-1")
    assert "'loss.compact.pull' is -1" in wrong


@pytest.mark.parametrize("secure", [False, True])
def test_a_new_objective_in_closed_form_is_one_file(
    checkout: Checkout, scenes: Path, tmp_path: Path, secure: bool
) -> None:
    checkout.add("common/losses/mirrored.py", CLOSED)
    words = tiny(
        preset="default", rounds=2, loss__objective="mirrored", privacy__secure_sum=str(secure).lower()
    )
    checkout.simulate("--shards", scenes, "--run-dir", tmp_path / "run", *words)
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["counted"] for line in lines] == [True, True]
