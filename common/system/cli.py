"""Command lines: one sentence and exit code 2 for every user error, tables, and lines that tell progress."""

from __future__ import annotations

import difflib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from click import Command, Context, Option, UsageError
from click.exceptions import Exit
from typer.core import TyperCommand, TyperGroup, TyperOption

from common.errors import UserError, report_user_errors

_F = TypeVar("_F", bound=Callable[..., Any])

Recipe = Annotated[
    Path | None, typer.Option(metavar="F", help="Settings as TOML (see recipes/).", show_default=False)
]
Assignments = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting.", default_factory=list, show_default=False
    ),
]
DataRoot = Annotated[Path | None, typer.Option(metavar="R", help="Folder the manifest's paths refer to.")]


class _QuietHelp(Command):
    """Leaves the line about ``--help`` out of the help, which who reads it has found."""

    def get_help_option(self, ctx: Context) -> Option | None:
        """Return the option, hidden."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.hidden = True
        return option


class FlexibleCommand(_QuietHelp, TyperCommand):
    """A command whose options may be shortened, and take several values where their metavar ends in ``...``."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the arguments; ``--train A B`` stands for ``--train A --train B``."""
        return super().parse_args(ctx, list(self._spread(args)))

    def _spread(self, arguments: Sequence[str]) -> Iterator[str]:
        options = [option for option in self.params if isinstance(option, Option)]
        known = [name for option in options for name in option.opts if name.startswith("--")]
        several = {name for option in options if str(option.metavar).endswith("...") for name in option.opts}
        current, fresh = "", False  # the option whose values are being read, and whether it has none so far
        for number, word in enumerate(arguments):
            if word == "--":
                yield from arguments[number:]
                return
            if word.startswith("-") and word != "-":
                name, equals, value = word.partition("=")
                matches = [option for option in known if option.startswith(name)]
                full = matches[0] if len(matches) == 1 and name not in known else name
                current, fresh = (full if full in several and not equals else ""), True
                yield full + equals + value
            else:
                if current and not fresh:
                    yield current
                fresh = False
                yield word


class CommandGroup(_QuietHelp, TyperGroup):
    """Commands in the order in which they were added; names the nearest one where a word is none of them."""

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """Find the command of the first word; raises `UserError` where there is none."""
        if args and not args[0].startswith("-"):
            need_name(args[0], self.list_commands(ctx), ctx.obj)
        return super().resolve_command(ctx, args)


def need_name(given: str, known: Iterable[str], kind: str) -> None:
    """Raise `UserError` with the nearest name where ``given`` is none of those ``known``."""
    names = list(known)
    if given not in names:
        near = difflib.get_close_matches(given, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"There is no {kind} {given!r}: {hint}expected one of {', '.join(names)}.")


def escaped(text: str) -> str:
    """Return a help text whose brackets are shown: Rich would take what stands in them for a style."""
    return text.replace("[", r"\[")


def option(names: str, metavar: str | None, text: str, *, group: str = "Options", **more: Any) -> TyperOption:
    """Describe an option of a command that is put together at run time; ``more`` goes to `click.Option`.

    ``names`` is the option, followed by the name of its value where that is another: ``--source source_of``.
    """
    more.setdefault("show_default", False)
    return TyperOption(
        param_decls=names.split(), metavar=metavar, help=escaped(text), rich_help_panel=group, **more
    )


class CommandLine:
    """The commands of one program; ``kind`` is what its first word names.

    ``made`` are commands that no function declares, because their options are known at run time only.
    """

    def __init__(
        self,
        program: str,
        text: str | None,
        kind: str = "command",
        made: Sequence[Command] = (),
        **options: Any,
    ) -> None:
        self.program, self.made = program, made
        self.app = typer.Typer(
            cls=CommandGroup,
            help=text,
            add_completion=False,
            rich_markup_mode="rich",
            context_settings={"help_option_names": ["-h", "--help"], "obj": kind},
            **options,
        )

    def command(self, example: str) -> Callable[[_F], _F]:
        """Return a decorator that makes a function a command of its name, with an example below its help."""

        def register(function: _F) -> _F:
            name = function.__name__.strip("_")
            epilog = f"example: {self.program} {name} {example}"
            # Rich would break lines where the docstring does
            text = "\n\n".join(" ".join(part.split()) for part in (function.__doc__ or "").split("\n\n"))
            return self.app.command(name, cls=FlexibleCommand, help=text, epilog=epilog)(function)

        return register

    def group(self, program: str = "") -> TyperGroup:
        """Return all commands as click has them; ``program`` is what examples call it, where not by its own name."""
        group = typer.main.get_group(self.app)
        for command in self.made:
            group.add_command(command)
        for command in (group, *group.commands.values()):
            command.epilog = (command.epilog or "").replace(self.program, program or self.program)
        return group

    def run(self, arguments: Sequence[str] | None = None) -> int:
        """Run a command as `run_group` does."""
        return run_group(self.group(), self.program, arguments)


@report_user_errors
def run_group(group: TyperGroup, program: str, arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments (None: those of the process), run their command, and return its exit code.

    User errors end with one sentence on stderr and `SystemExit` 2, ``--help`` with `SystemExit` 0.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as it is while libraries are imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # commands draw into files; a notebook's cell would hand them its own way of drawing
    os.environ["MPLBACKEND"] = "agg"
    try:
        # not Command.main, which would end a broken pipe and Ctrl-C in its own way
        with group.make_context(program, list(sys.argv[1:] if arguments is None else arguments)) as context:
            return int(group.invoke(context) or 0)
    except UsageError as error:
        place = error.ctx.command_path if error.ctx else program
        sentence = " ".join(error.format_message().split()).rstrip(".")
        raise UserError(f"{sentence}; see `{place} --help`.") from None
    except Exit as stop:
        raise SystemExit(stop.exit_code) from None


def parse_size(text: str) -> tuple[int, int]:
    """Read ``512x928``: height and width in pixels, from 32 up."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and min(int(height), int(width)) >= 32):
        raise typer.BadParameter(f"{text!r} is not a size from 32x32 up, as HEIGHTxWIDTH")
    return int(height), int(width)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[str] = ()
) -> None:
    """Print rows below the names of their columns; those in ``numbers`` stand to the right.

    A terminal's width is respected. Elsewhere every row stays on one line, for programs that read it.
    """
    from rich.console import Console  # 40 ms that `--help` of some commands need not spend
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=None if sys.stdout.isatty() else 1000, markup=False, highlight=False).print(table)


# Called with how many are done and how many there are.
Progress = Callable[[int, int], None]

# Where nobody watches a terminal, a line is written this often: a log stays short, quick work says nothing.
PIPE_SECONDS = 10.0


def progress_line(what: str) -> Progress:
    """Return what counts on one line of a terminal, with the time left; in a pipe, on a line each ten seconds."""
    watched = sys.stderr.isatty()
    start = said = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        left = (now - start) / max(done, 1) * (total - done)
        text = f"{what} {done}/{total}, {left:.0f} s left"
        if watched:
            print(f"\r{text}  ", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif now - said >= PIPE_SECONDS:
            said = now
            print(text, file=sys.stderr, flush=True)

    return show
