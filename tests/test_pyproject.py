"""Does pyproject.toml say what the code says?"""

from __future__ import annotations

import tomllib
from importlib import import_module

import siteseg
from common.settings.load import default_flat
from common.settings.section import flatten
from tests.conftest import ROOT


def project() -> dict[str, dict[str, object]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_settings_key_is_listed_with_its_default() -> None:
    listed = flatten(project()["tool"]["flwr"]["app"]["config"])  # type: ignore[index,call-overload]
    assert listed == default_flat()


def test_no_federations_table() -> None:
    assert "federations" not in project()["tool"]["flwr"]  # type: ignore[operator]


def test_components_exist() -> None:
    for where in project()["tool"]["flwr"]["app"]["components"].values():  # type: ignore[index,call-overload]
        module, _, name = where.partition(":")
        assert hasattr(import_module(module), name)


def test_the_version_stands_in_two_places_alike() -> None:
    assert project()["project"]["version"] == siteseg.__version__
