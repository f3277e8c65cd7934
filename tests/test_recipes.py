"""Tests every shipped recipe: it loads under its name, each of its settings acts, and its odd values belong to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from common.errors import UserError
from common.losses.correspondence import CorrespondenceSettings
from common.settings.load import load_config, read_recipe
from common.settings.tasks import TASK_FACTS
from server.tasks.base import task_of
from tests.conftest import ROOT

Settings = dict[str, Any]


RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


def check_name(name: str, given: Settings) -> None:
    """A recipe loads and has the name of its file."""
    assert load_config(given).name == name


def check_settings(_: str, given: Settings) -> None:
    """A recipe's task takes its settings, alone and as the campaigns start it."""
    config = load_config(given)
    started = [config]
    if config.task == "adaptation":  # from a checkpoint, and with another seed
        further = {"source.checkpoint": "runs/source", "source.styles": "", "seed": 1}
        started.append(load_config(given, further))
    for each in started:
        task_of(each).check_settings(each)


def check_published(name: str, given: Settings) -> None:
    """What is odd in the published method stays with its own rows."""
    config = load_config(given)
    odd = (
        config.loss.own(CorrespondenceSettings).negative_draw,
        config.local.neighbour_dropout,
        config.local.prox_parameters,
    )
    plain = "-objective-" in name or name.endswith(("-correspondence", "-smoothness"))
    published = config.preset == "fuss-ref" and not plain
    assert odd == (("published", 0.1, "nonlinear") if published else ("derangement", 0.0, "all"))


@pytest.mark.parametrize("check", [check_name, check_settings, check_published])
def test_every_recipe(check: Callable[[str, Settings], None]) -> None:
    """One loop in the place of a case for each recipe; a line of the failure names each recipe at fault."""
    failures = []
    for path in RECIPES:
        try:
            check(path.stem, read_recipe(path))
        except (AssertionError, UserError) as error:
            failures.append(f"{path.stem}: {str(error).splitlines()[0]}")
    assert RECIPES and not failures, "\n".join(failures)


def test_there_are_recipes_of_every_task() -> None:
    assert {load_config(read_recipe(path)).task for path in RECIPES} == set(TASK_FACTS)
