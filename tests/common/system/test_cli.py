"""Command lines: several values, shortened options, one sentence and exit code 2, help on one screen."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import pytest
import typer

from client.__main__ import _line as client_line
from common.errors import UserError
from common.system import cli
from common.system.cli import CommandLine, need_name, print_table
from partitions.__main__ import _line as partitions_line
from server.__main__ import _line as server_line
from tests.conftest import ROOT
from tests.support.commands import understood

LINES = {line.program.split()[-1]: line for line in (server_line, client_line, partitions_line)}
COMMANDS = [
    *[(name,) for name in LINES],
    *[(name, command) for name, line in LINES.items() for command in line.group().commands],
]
PROBE = ["probe", "--checkpoint", "c", "--test", "t"]


@pytest.mark.parametrize(
    "words",
    [
        ["--train", "a", "b", "c"],
        ["--train", "a", "--train", "b", "c"],
        ["--train=a", "--train", "b", "c", "--crf"],
        ["--tra", "a", "b", "c"],
    ],
)
def test_an_option_takes_several_values(words: list[str]) -> None:
    assert list(understood(server_line, [*PROBE, *words])["train"]) == ["a", "b", "c"]


def test_several_values_end_at_the_next_option_and_the_others_take_one() -> None:
    words = ["leaf", "--root", "r", "--lists", "a", "b", "--out", "o", "--test", "n=c", "d", "--sites", "-1"]
    found = understood(partitions_line, words)
    assert found["lists"] == ("a", "b") and found["test"] == ("n=c", "d") and found["out"] == "o"
    assert found["sites"] == -1, "a negative number is a value, for the command itself to refuse"
    found = understood(server_line, ["settings", "--set", "a=1", "--set", "b=2"])
    assert list(found["assignments"]) == ["a=1", "b=2"]


def test_words_after_two_dashes_are_no_options() -> None:
    words = ["segment", "--checkpoint", "c", "--out", "o", "--", "--odd-name.png", "b"]
    assert list(understood(server_line, words)["inputs"]) == ["--odd-name.png", "b"]


def test_an_ambiguous_or_unknown_short_form_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for short in ("--s", "--nothing"):  # --shards and --set
        with pytest.raises(SystemExit) as stop:
            server_line.run(["simulate", short, "x"])
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert (
            said.startswith("error: ")
            and short in said
            and "simulate --help" in said
            and said.count("\n") == 1
        )


def test_what_a_command_returns_is_the_exit_code() -> None:
    line = CommandLine("program", "Text.")

    @line.command("")
    def _give(number: Annotated[int, typer.Argument()]) -> int:
        return number

    @line.command("")
    def _nothing() -> None: ...

    assert line.run(["give", "3"]) == 3 and line.run(["nothing"]) == 0


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(UserError, match=r"no command 'evalute': did you mean 'evaluate'\? expected one of"):
        need_name("evalute", ["simulate", "evaluate"], "command")
    need_name("simulate", ["simulate"], "command")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_fits_on_a_screen(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        LINES[words[0]].run([*words[1:], "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0 and len(lines) <= 50 and max(map(len, lines)) <= 80, len(lines)


@pytest.mark.parametrize("program", LINES)
def test_help_imports_nothing_heavy(program: str) -> None:
    script = (
        f"import sys\nfrom {program}.__main__ import _line\n"
        "try: _line.run(['--help'])\nexcept SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'flwr', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_table_has_a_line_per_row_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "n"), [("[a]", 1), ("b" * 120, 20)], numbers=("n",))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["name", "n"], ["[a]", "1"], ["b" * 120, "20"]]


def test_progress_shows_in_a_pipe_but_not_for_quick_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(cli.time, "monotonic", lambda: now)
    show = cli.progress_line("checking")
    for done in range(1, 41):
        now += 1.0
        show(done, 40)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"checking {done}/40, {40 - done} s left" for done in (10, 20, 30, 40)]
    cli.progress_line("checking")(1, 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("what", ["rules", "objectives", "backbones", "tasks"])
def test_registered_names_are_listed_with_a_line_each(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert server_line.run(["list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    known = {"rules": "lloyd", "objectives": "spectral", "backbones": "mobilenet_v2", "tasks": "adaptation"}[
        what
    ]
    assert any(line.split(maxsplit=1)[0] == known and len(line.split()) > 3 for line in lines), lines


def test_data_sets_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert partitions_line.run(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for known in ("camvid", "folder", "dirichlet"):
        assert any(line.split(maxsplit=1)[:1] == [known] and len(line.split()) > 3 for line in lines), lines
