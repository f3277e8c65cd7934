"""Tests README and pages: every link leads somewhere, and every command that they show is understood."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from client.__main__ import client_main
from common.settings.load import RECIPES
from partitions.__main__ import partitions_main
from server.__main__ import server_main
from siteseg.command import siteseg_main
from tests.conftest import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")), *DOCS]
# What a reader replaces; recipes and choices of these names are not looked for.
PLACEHOLDERS = re.compile(r"^[A-Z][A-Z0-9_-]*(\.\w+)?$")


class Parsed(Exception):
    """A command was understood, and is not run."""


def blocks(text: str) -> Iterator[str]:
    """Return the contents of code blocks that are for a shell."""
    for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
        if kind in ("", "sh", "bash", "console"):
            yield body


def prose(text: str) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def slug(title: str) -> str:
    """Return the anchor of a heading."""
    bare = re.sub(r"[`*]|\]\([^)]*\)|\[", "", title).strip().lower()
    return re.sub(r"[^\w\- ]", "", bare).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    return {slug(title) for title in re.findall(r"^#+ (.*)$", prose(path.read_text(encoding="utf-8")), re.M)}


def dead_links(path: Path) -> list[str]:
    """Return the links of a page that lead nowhere; other sites are not asked."""
    dead = []
    text = prose(path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.M):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        if not place.exists() or (anchor and anchor not in anchors(place)):
            dead.append(target)
    return dead


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    assert dead_links(path) == []


def test_the_search_for_dead_links_finds_them(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "# One `two`\n[x](#one-two) [y](#three) [z](b.md) [w](https://example.org) [v]\n\n[v]: c.py\n"
    )
    assert dead_links(page) == ["#three", "b.md", "c.py"]


def flower(module: str, function: str) -> Callable[[list[str]], object]:
    def start(words: list[str]) -> object:
        sys.argv = [function, *words]
        return getattr(importlib.import_module(module), function)()

    return start


def script(path: str) -> Callable[[list[str]], object]:
    """Return what runs a script of the checkout with words."""

    def start(words: list[str]) -> object:
        sys.argv = [path, *words]
        sys.path.insert(0, str((ROOT / path).parent))  # as Python does where it is started
        module = importlib.import_module(Path(path).stem)
        main: Callable[..., object] = module.main
        return main(words) if main.__code__.co_argcount else main()

    return start


def make(words: list[str]) -> None:
    """Understand the targets of the Makefile."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    unknown = [word for word in words if "=" not in word and word not in targets]
    if unknown:
        raise ValueError(f"no target {unknown}")
    raise Parsed


# System commands, of which there is nothing to parse here.
OTHERS = re.compile(
    r"\.|bash|cd|chown|cp|curl|docker|export|git|install|journalctl|kubectl|mkdir|mlflow|nvidia-smi|pip|pre-commit|"
    r"printf|python3?|rm|sbatch|source|srun|ss|ssh|ssh-keygen|sudoedit|systemctl|tensorboard|useradd|uv|wandb"
)


@dataclass(frozen=True)
class Shown:
    """A command as a page shows it; in prose it may be cut short."""

    page: str
    text: str
    whole: bool

    def words(self) -> list[str]:
        """Return the words without prompts, settings of the environment, comments and what follows a pipe."""
        text = re.split(r"\s#\s|\s>|\s\||\s\&$", self.text.removeprefix("$ "))[0]
        words = shlex.split(text)
        while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] == "sudo"):
            words = words[1:]
            if words[:1] == ["-u"]:
                words = words[2:]
        return words

    def program(self) -> tuple[Callable[[list[str]], object] | None, list[str]]:
        """Return what understands the command, None for a system's own, and the words that follow."""
        words = self.words()
        head = Path(words[0]).name if words else ""
        if head in ("python", "python3") and len(words) > 1:
            module = words[2] if words[1] == "-m" and len(words) > 2 else words[1]
            rest = words[3:] if words[1] == "-m" else words[2:]
            known: dict[str, Any] = {
                "server": server_main,
                "client": client_main,
                "partitions": partitions_main,
                "siteseg": siteseg_main,
            }
            if module in known:
                return known[module], rest
            path = module.replace(".", "/") + ".py" if words[1] == "-m" else module
            if path.startswith(("benchmarks/", "docker/")):
                return script(path), rest
            return None, rest
        superlink, supernode = "flwr.superlink.cli.flower_superlink", "flwr.supernode.cli.flower_supernode"
        programs: dict[str, Any] = {
            "siteseg": siteseg_main,
            "make": make,
            "flwr": lambda words: importlib.import_module("flwr.cli.app").app(words),
            "flower-superlink": flower(superlink, "flower_superlink"),
            "flower-supernode": flower(supernode, "flower_supernode"),
        }
        return programs.get(head), words[1:]


def shown_commands() -> list[Shown]:
    """Return every command of README and pages."""
    found = []
    for path in [*PAGES[:3], *DOCS]:
        text = path.read_text(encoding="utf-8")
        for block in blocks(text):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith("#"):
                    found += [Shown(path.name, part.strip(), True) for part in line.split(" && ")]
        for code in re.findall(r"`([^`\n]+)`", prose(text)):
            if re.match(r"(\S*/)?(python3? (-m|\S+\.py)|siteseg|make|flwr|flower-\w+)(\s|$)", code):
                found.append(Shown(path.name, code, False))
    return found


def complaint(shown: Shown) -> str | None:
    """Return what a command's own parser says against it, None where it would start."""
    start, words = shown.program()
    cut = not shown.whole and (not words or "..." in words)
    if start is None or cut:
        return None
    words = [word.split("|")[0] if re.fullmatch(r"\w+(\|\w+)+", word) else word for word in words]
    try:
        start(words)
    except Parsed:
        return None
    except SystemExit as stop:
        return None if stop.code in (0, None) else f"exit code {stop.code}"
    except Exception as error:
        return str(error)
    return "it did not get to its parser"


@pytest.fixture
def parsers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command end as soon as its words are understood."""
    parse = argparse.ArgumentParser.parse_args

    def parsed(self: argparse.ArgumentParser, *given: Any, **more: Any) -> argparse.Namespace:
        parse(self, *given, **more)
        raise Parsed

    def invoke(self: click.Command, ctx: click.Context) -> None:
        if not isinstance(self, click.Group):
            raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(click.Command, "invoke", invoke)
    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.slow
@pytest.mark.usefixtures("parsers_alone")
def test_every_command_is_understood_by_its_parser(capsys: pytest.CaptureFixture[str]) -> None:
    failures, understood = [], 0
    for shown in shown_commands():
        said = complaint(shown)
        printed = capsys.readouterr().err
        understood += shown.program()[0] is not None
        if said is None:
            continue
        # prose may leave out what a command needs, or name a kind of thing in capitals
        short = (
            "Missing" in printed
            or "requires an argument" in printed
            or any(PLACEHOLDERS.match(word) for word in shown.words())
        )
        if shown.whole or not short:
            failures.append(f"{shown.page}: {shown.text}\n    {said} {printed.strip()}")
    assert understood > 60
    assert not failures, "\n".join(failures)


@pytest.mark.usefixtures("parsers_alone")
def test_a_command_that_is_no_more_is_found() -> None:
    for wrong in (
        "python -m server simulat",
        "siteseg segment --otu x",
        "python benchmarks/tables.py --tabel x",
    ):
        assert complaint(Shown("a", wrong, True)), wrong
    assert complaint(Shown("a", "make demmo", True))
    assert complaint(Shown("a", "sudo -u x .venv/bin/python -m client serve --server a:1", True)) is None


def test_code_blocks_hold_commands_that_are_known() -> None:
    unknown = []
    for shown in shown_commands():
        words = shown.words()
        listing = re.match(r"[\w/]+/\s|\[|\S+ = ", shown.text)  # folders, or lines of a settings file
        if shown.whole and words and not listing and shown.program()[0] is None:
            name = words[0] if words[0] == "." else Path(words[0]).name
            unknown += [] if OTHERS.fullmatch(name) else [f"{shown.page}: {shown.text}"]
    assert unknown == []


def test_every_recipe_that_is_named_is_there() -> None:
    for path in [*PAGES[:3], *DOCS]:
        for name in re.findall(r"--recipe (\S+?)(?=[\s`'\"]|$)", path.read_text(encoding="utf-8")):
            stem = Path(name).stem
            if not PLACEHOLDERS.match(stem):
                assert (RECIPES / f"{stem}.toml").is_file(), f"{path.name}: {name}"
