"""Tests registration, discovery and error sentences of registries."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.errors import UserError
from common.registry import Registry

Step = Callable[[int], int]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of its own, without __init__.py as the rooms are; its modules are forgotten afterwards."""
    folder = tmp_path / "registry_room"
    folder.mkdir()
    (folder / "base.py").write_text(
        "from common.registry import Registry\nRULES = Registry('step', 'registry_room')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("registry_room")]:
        del sys.modules[name]


def add(folder: Path, name: str, body: str = "return value + 1") -> None:
    (folder / f"{name}.py").write_text(
        "from registry_room.base import RULES\n"
        f"@RULES.register('{name}', summary='what {name} does', facts='{name} facts')\n"
        f"def {name}(value):\n    {body}\n"
    )


def rules() -> Registry[Step, str]:
    import importlib

    registry: Registry[Step, str] = importlib.import_module("registry_room.base").RULES
    return registry


def test_a_file_in_the_folder_is_enough(room: Path) -> None:
    add(room, "twice", "return 2 * value")
    add(room, "once")
    found = rules()
    assert [(entry.name, entry.summary) for entry in found.entries()] == [
        ("once", "what once does"),
        ("twice", "what twice does"),
    ]
    assert found.get("twice")(4) == 8
    assert found.facts("once") == "once facts"


def test_an_unknown_name_is_answered_with_the_known_ones(room: Path) -> None:
    add(room, "twice")
    add(room, "once")
    with pytest.raises(UserError, match=r"step 'twise'.*once, twice.*'twice'\?"):
        rules().get("twise")


def test_two_files_with_one_name_are_refused(room: Path) -> None:
    add(room, "once")
    (room / "other.py").write_text((room / "once.py").read_text())
    with pytest.raises(ValueError, match=r"'once'.*registry_room\.o.*registry_room\.o"):
        rules().names()


def test_a_broken_file_shows_its_fault_each_time(room: Path) -> None:
    add(room, "once")
    (room / "zz_broken.py").write_text("1 / 0\n")
    found = rules()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            found.names()


def test_a_module_that_asks_while_it_is_imported_does_not_start_over(room: Path) -> None:
    add(room, "once")
    (room / "zz_asks.py").write_text("from registry_room.base import RULES\nSEEN = RULES.names()\n")
    assert rules().names() == ("once",)
    assert sys.modules["registry_room.zz_asks"].SEEN == ("once",)
