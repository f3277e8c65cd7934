"""The command ``siteseg``: the commands of all packages under one name, each imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from click import Command, Context, Parameter
from click.exceptions import Exit
from typer.core import TyperCommand

from common.system.cli import CommandGroup, CommandLine, option, run_group
from siteseg.version import __version__

PROGRAM = "siteseg"
_INTRODUCTION = """\
Image segmentation learned over many sites, whose images stay where they are. First steps: `siteseg doctor`, then \
`siteseg partition folder --root IMAGES --sites 4 --out shards/own`, `siteseg simulate --recipe own-pictures \
--shards shards/own`, and `siteseg segment --checkpoint RUN --out masks IMAGES`.
"""

_PARTITION = ("partitions.__main__", "partition_commands")
_SERVER = ("server.__main__", "server_commands")
_CLIENT = ("client.__main__", "client_commands")
_DOCTOR = ("siteseg.doctor", "doctor_commands")
_RUNS, _RESULTS, _SITES = "Train", "Use what was trained", "Sites and this machine"

# A new command is a line: its name, where it is, the panel of the help that shows it, and what it does.
ENTRIES: dict[str, tuple[tuple[str, str], str, str]] = {
    "partition": (_PARTITION, _RUNS, "Divide images on disk into shards, one per site."),
    "simulate": (_SERVER, _RUNS, "Run a recipe with all sites on this machine."),
    "pretrain": (_SERVER, _RUNS, "Make the labelled source model of task 'adaptation'."),
    "settings": (_SERVER, _RUNS, "Print all settings of a recipe as TOML; --explain says what they mean."),
    "list": (_SERVER, _RUNS, "List rules, objectives, backbones, networks or tasks."),
    "segment": (_SERVER, _RESULTS, "Segment images: label PNGs, overlays and an index page."),
    "evaluate": (_SERVER, _RESULTS, "Score a checkpoint on a labelled shard."),
    "probe": (_SERVER, _RESULTS, "Fit a linear classifier with labels on frozen features, and score it."),
    "name": (_SERVER, _RESULTS, "Name and join clusters: on a page, in a file, or by labelled images."),
    "audit": (_SERVER, _RESULTS, "Warn where masks follow sites or places, not content."),
    "report": (_SERVER, _RESULTS, "Write a run's report, or compare several runs."),
    "export": (_SERVER, _RESULTS, "Export a checkpoint to ONNX, or to a folder for a model hub."),
    "client": (_CLIENT, _SITES, "A site's commands: check, serve, policy, egress and more."),
    "doctor": (_DOCTOR, _SITES, "Say what is missing or slow on this machine, and what to do."),
}


def load_command(name: str) -> Command:
    """Import a command, or a group of commands that is called by one word."""
    (module, attribute), _, _ = ENTRIES[name]
    line: CommandLine = getattr(import_module(module), attribute)
    alone = line.group(PROGRAM).commands.get(name)
    if alone is not None:
        return alone
    group = line.group(f"{PROGRAM} {name}")
    group.name = name
    return group


class _LazyGroup(CommandGroup):
    """Shows each command by its line in the table, and imports the one that is called."""

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """Find the command of the first word; raises `UserError` where there is none."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name in ENTRIES else command, rest


def _show_version(ctx: Context, parameter: Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        typer.echo(f"{PROGRAM} {__version__}")
        raise Exit(0)


def command_group() -> _LazyGroup:
    """Return all commands as click has them."""
    show: dict[str, Any] = {"is_flag": True, "is_eager": True, "expose_value": False}
    return _LazyGroup(
        name=PROGRAM,
        help=_INTRODUCTION,
        commands={
            name: TyperCommand(name, help=line, short_help=line, rich_help_panel=panel)
            for name, (_, panel, line) in ENTRIES.items()
        },
        params=[option("--version", None, "Print the version.", callback=_show_version, **show)],
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"], "obj": "command"},
    )


def siteseg_main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; user errors end with one sentence and `SystemExit` 2."""
    return run_group(command_group(), PROGRAM, arguments)
