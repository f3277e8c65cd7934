"""Checks that the code computes the figures of the golden files, and the same bits twice on one machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.figures import FOLDER, Golden, moved, read
from tests.golden.merges import golden_merges
from tests.golden.objectives import golden_objectives
from tests.golden.runs import SETTINGS, golden_run, run_lines, workplace

REMEDY = "If that is what you wanted, run `make golden` and say in the commit why."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scenes, which is the current directory while runs compute."""
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(scope="module")
def computed(folder: Path) -> dict[str, Golden]:
    """Everything that the golden files pin, computed once."""
    found = [*golden_merges(), *golden_objectives()]
    with workplace(folder):
        found += [golden_run(folder, name) for name in SETTINGS]
    return {golden.name: golden for golden in found}


NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_the_golden_ones(name: str, computed: dict[str, Golden]) -> None:
    golden = computed[name]
    changes = moved(golden.figures, read(golden.path), golden.tolerance)
    shown = "\n".join(f"{path}: {old} -> {new}" for path, (old, new) in list(changes.items())[:20])
    assert not changes, f"{len(changes)} figures of {golden.path.name} moved:\n{shown}\n{REMEDY}"


def test_every_figure_has_a_file(computed: dict[str, Golden]) -> None:
    assert sorted(computed) == NAMES


def test_the_same_code_gives_the_same_bits_twice(computed: dict[str, Golden], folder: Path) -> None:
    again = {golden.name: golden for golden in (*golden_merges(), *golden_objectives())}
    assert all(golden.hashes == computed[name].hashes for name, golden in again.items())
    with workplace(folder):
        for name in SETTINGS:
            lines = run_lines(folder, name, run_dir=f"again-{name}")
            found = {f"round-{line['round']}": line["checkpoint_sha256"] for line in lines}
            assert found == computed[f"run-{name}"].hashes, name
