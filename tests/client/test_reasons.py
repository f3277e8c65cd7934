"""Does any of 200 plausible names of folders and files leave a deployed site, whatever goes wrong with it?"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.reasons import coded_reason
from common import wire
from common.errors import UserError
from tests.client.test_app import ask

PEOPLE = (
    "Mueller Hans 1956",
    "O'Brien, Mary",
    "García_José",
    "van der Berg",
    "李小龙",
    "Smith",
    "Nguyen-Thi Lan",
    "d'Arc",
)
THINGS = (
    "MRT Kopf",
    "biopsy #12",
    "left knee (old)",
    "Haus 7, 3. Stock",
    "K:12345",
    "room 101",
    "HIV+",
    "2024-05-17 ER",
)
ENDINGS = (".png", ".jpg", ".PNG", ".dcm", "", ".tar.gz", " copy.png", ".v2")


def names() -> list[str]:
    draw, found = random.Random(0), set[str]()
    while len(found) < 200:
        words = [draw.choice(PEOPLE), draw.choice(THINGS)]
        draw.shuffle(words)
        found.add(
            draw.choice((" ", "_", " - ", "")).join(words)
            + str(draw.randrange(1930, 2020))
            + draw.choice(ENDINGS)
        )
    return sorted(found)


def parts(name: str) -> set[str]:
    """Return the words of a name that say something: a name, a year, a finding."""
    words = {word for person in PEOPLE + THINGS for word in person.replace(",", " ").split() if word in name}
    return {word for word in words if len(word) > 2} | {name}


def broken_site(folder: Path, name: str, kind: int) -> dict[str, Any]:
    """Return the node of a deployed site whose ``name`` is a folder, an image, a manifest or a cache that is broken."""
    home = folder / str(kind)
    home.mkdir()
    node = {"site": "clinic", "shard": str(home / "site-0.jsonl"), "cache": str(home / "cache")}
    manifest, image = Path(node["shard"]), "x.png"
    if kind == 0:  # a folder that is not there
        node["shard"] = str(home / name / "list.jsonl")
        return node
    if kind == 1:  # a manifest of that name, half written
        manifest = home / f"{name}.jsonl"
        node["shard"] = str(manifest)
        manifest.write_text('{"image": "a.png"}\n{"ima', encoding="utf-8")
        return node
    if kind == 2:  # an image that is not there
        image = f"{name}/{name}.png"
    if kind == 3:  # an image that is damaged
        image = f"{name}.png"
        (home / image).write_bytes(b"no picture")
    if kind == 4:  # a cache that is a file
        (home / name).write_text("x")
        node["cache"] = str(home / name)
    if kind in (4, 5):
        Image.fromarray(np.zeros((65, 97, 3), np.uint8)).save(home / "x.png")
    if kind == 5:  # weights that are none
        (home / name).write_text("x")
        node["weights"] = str(home / name)
    manifest.write_text(json.dumps({"image": image}) + "\n", encoding="utf-8")
    return node


def test_no_name_leaves_a_deployed_site(tmp_path: Path) -> None:
    leaked, sentences = [], set()
    for number, name in enumerate(names()):
        folder = tmp_path / str(number)
        folder.mkdir()
        answer = ask(broken_site(folder, name, number % 6), wire.HELLO)
        reason = str(answer.facts["error"])
        sentences.add(reason)
        said = f"{reason} {answer.site} {answer.facts} {answer.metrics} {sorted(answer.groups)}"
        leaked += [(word, said) for word in parts(name) if word in said]
    assert leaked == []
    assert 4 <= len(sentences) <= 12, sentences  # codes with fixed sentences


def test_a_site_without_a_name_of_its_own_does_not_take_that_of_a_file(tmp_path: Path) -> None:
    found = ask({"shard": str(tmp_path / "Jane-Doe-1956.jsonl")}, wire.HELLO)
    assert "Jane" not in f"{found.site}{found.facts}"
    assert str(found.facts["error"]).startswith("name: ")


@pytest.mark.parametrize(
    "error", [KeyError("/data/Jane Doe"), OSError(2, "No such file", "Jane Doe.png"), UserError("Jane")]
)
def test_what_nobody_foresaw_says_nothing(error: Exception) -> None:
    assert "Jane" not in coded_reason(error)
    assert coded_reason(error).startswith("failed: ")
