"""Checks that the code computes the figures of the golden files, the same bits twice, and that settings act."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.golden import figures
from tests.golden.figures import FOLDER, Golden, Tolerance, moved, read, update
from tests.golden.merges import golden_merges
from tests.golden.objectives import TOLERANCE, golden_objectives, local_rounds, settings_of
from tests.golden.runs import (
    BYTES,
    PRESETS,
    SETTINGS,
    config_of,
    figures_of,
    golden_run,
    run_lines,
    tolerance_of,
    workplace,
)
from tests.golden.settings import ROUNDS, RUNS, UNUSED, altered, float_settings

REMEDY = "If that is what you wanted, run `make golden` and say in the commit why."
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


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


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_the_golden_ones(name: str, computed: dict[str, Golden]) -> None:
    golden = computed[name]
    changes = moved(golden.figures, read(golden.path), golden.tolerance)
    shown = "\n".join(f"{path}: {old} -> {new}" for path, (old, new) in list(changes.items())[:20])
    assert not changes, f"{len(changes)} figures of {golden.path.name} moved:\n{shown}\n{REMEDY}"


def test_every_figure_has_a_file(computed: dict[str, Golden]) -> None:
    assert sorted(computed) == NAMES


@pytest.mark.slow
def test_the_same_code_gives_the_same_bits_twice(computed: dict[str, Golden], folder: Path) -> None:
    again = {golden.name: golden for golden in (*golden_merges(), *golden_objectives())}
    assert all(golden.hashes == computed[name].hashes for name, golden in again.items())
    with workplace(folder):
        for name in SETTINGS:
            lines = run_lines(folder, config_of(name, **{"run-dir": f"again-{name}"}))
            found = {f"round-{line['round']}": line["checkpoint_sha256"] for line in lines}
            assert found == computed[f"run-{name}"].hashes, name


def test_an_update_rewrites_the_figures_that_moved_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    tolerance = Tolerance(relative=1e-3, absolute=1e-6)

    def updated(**found: Any) -> dict[str, Any]:
        return update(Golden("some", found, tolerance))

    assert set(updated(b=[1.0, 2.0], a={"x": 3.0, "none": None})) == {"b/0", "b/1", "a/x", "a/none"}
    first = (tmp_path / "some.json").read_text()
    assert first == '{\n  "a": {\n    "none": null,\n    "x": 3\n  },\n  "b": [1, 2]\n}\n'
    assert not updated(a={"x": 3.0001, "none": None}, b=[1.0005, 2.0])
    assert (tmp_path / "some.json").read_text() == first
    assert updated(a={"x": 3.0001, "none": None}, b=[1.5, 2.0001]) == {"b/0": (1, 1.5)}
    assert (tmp_path / "some.json").read_text() == first.replace("[1, 2]", "[1.5, 2]")
    assert set(updated(a={"x": 3.0, "none": 0.0}, b=[1.5])) == {"a/none", "b/1"}
    with pytest.raises(ValueError, match="nan"):
        updated(a=float("nan"))


def without_bytes(rounds: Any) -> dict[str, Any]:
    """Drop the bytes of rounds: settings travel, so that these change with every setting."""
    return {
        number: {key: value for key, value in found.items() if key not in BYTES}
        for number, found in rounds.items()
    }


def figures_felt(name: str, folder: Path, rounds: int, key: str = "") -> bool:
    """Tell whether a golden figure of so many rounds breaks, in a run of them with one setting altered."""
    given = partial(config_of, name, **{"run-dir": f"{name}-{rounds}-{key}", "rounds": rounds})
    with workplace(folder):
        found = without_bytes(figures_of(run_lines(folder, altered(key, given) if key else given())))
    golden = without_bytes(read(FOLDER / f"run-{name}.json"))
    return bool(moved(found, {number: golden[number] for number in found}, tolerance_of(name)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in RUNS.items() for key in keys])
def test_a_run_feels_its_settings(name: str, key: str, folder: Path) -> None:
    # schedules of whole networks look at the number of rounds; elsewhere one round mostly tells
    rounds = (1, 3) if name in PRESETS else (3,)
    assert any(figures_felt(name, folder, number, key) for number in rounds), (
        f"no figure of {name} feels {key}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_the_first_round_alone_is_that_of_the_run(name: str, folder: Path) -> None:
    assert not figures_felt(name, folder, 1)


@pytest.mark.parametrize(("case", "key"), [(case, key) for case, keys in ROUNDS.items() for key in keys])
def test_an_objective_feels_its_settings(case: str, key: str) -> None:
    value = altered(key, partial(settings_of, case)).to_flat()[key]
    golden = read(FOLDER / "objectives.json")["two-rounds"][case]
    assert moved(local_rounds(case, **{key: value}), golden, TOLERANCE), f"no figure of {case} feels {key}"


def test_every_float_setting_is_felt_or_says_why_not() -> None:
    felt = [key for table in (RUNS, ROUNDS) for keys in table.values() for key in keys]
    named = [*felt, *UNUSED]
    assert len(named) == len(set(named)), "a setting stands in two tables"
    everything = set(float_settings())
    assert set(named) <= everything, "a table names what is no float setting"
    runs = [config_of(name).to_flat() for name in SETTINGS]
    acting = {key for key in everything if any(flat[key] for flat in runs)}
    missing = sorted(acting - set(named))
    assert not missing, (
        f"{missing}: name in tests/golden/settings.py which golden figures feel them, or why none does"
    )
