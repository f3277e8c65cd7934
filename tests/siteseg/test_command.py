"""Tests the command ``siteseg``: its list of commands, its help, its speed, and that it starts what it names."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest
from click import Command, Context, Group

import siteseg
from client.__main__ import client_commands
from partitions.__main__ import partition_commands
from server.__main__ import server_commands
from siteseg.command import ENTRIES, command_group, load_command, siteseg_main
from tests.conftest import ROOT

SCREEN_LINES, SCREEN_COLUMNS = 45, 100


def commands(command: Command, words: str) -> Iterator[tuple[str, Command]]:
    """Return a command and all below it, by what is typed."""
    yield words, command
    if isinstance(command, Group):
        for name, each in command.commands.items():
            yield from commands(each, f"{words} {name}")


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_each_command_is_there_and_its_help_fits_a_screen(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, command in commands(load_command(name), f"siteseg {name}"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", str(SCREEN_COLUMNS))
            print(command.get_help(Context(command, info_name=words)))
        shown = capsys.readouterr().out
        assert 5 < len(shown.splitlines()) <= SCREEN_LINES, f"{words}:\n{shown}"
        assert "example: python -m" not in shown, words


def test_every_command_of_the_server_can_be_reached() -> None:
    assert set(server_commands.group().commands) <= set(ENTRIES)
    assert set(client_commands.group().commands) == set(load_command("client").commands)  # type: ignore[attr-defined]
    assert set(partition_commands.group().commands) == set(load_command("partition").commands)  # type: ignore[attr-defined]


def test_help_lists_every_command_on_one_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(SCREEN_COLUMNS))
    with pytest.raises(SystemExit) as stop:
        siteseg_main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert len(shown.splitlines()) <= SCREEN_LINES
    assert all(f" {name} " in shown for name in ENTRIES)


def test_help_and_version_take_less_than_half_a_second_of_the_processor() -> None:
    """Processor time: what else runs on the machine does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    rounds = 3
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-m", "siteseg", "--help"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
        )
        assert b"segment" in done.stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) / rounds < 0.5


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        siteseg_main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"siteseg {siteseg.__version__}\n"


def test_a_misspelled_command_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        siteseg_main(["segmnt"])
    assert stop.value.code == 2 and "did you mean 'segment'" in capsys.readouterr().err


def test_a_command_is_run_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert siteseg_main(["settings", "--recipe", "own-pictures", "--set", "seed=7"]) == 0
    assert "seed = 7" in capsys.readouterr().out


def test_commands_are_imported_only_when_they_are_called() -> None:
    code = "import sys; from siteseg.command import command_group; command_group(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "siteseg.command" in loaded
    assert not loaded & {"server.__main__", "torch", "flwr", "pydantic", "numpy"}


def test_the_group_is_a_group() -> None:
    assert set(command_group().commands) == set(ENTRIES)
