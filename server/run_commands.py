"""Commands on finished runs: reports, names of clusters, and warnings about masks that follow sites or places."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.errors import UserError
from common.system import cli
from common.system.cli import CommandLine, DataRoot
from server.options import ClassesName, ShardsFolder


def register(line: CommandLine) -> None:
    """Add the commands to a program."""
    line.command("runs/camvid-*")(_report)
    line.command("runs/own --serve")(_name)
    line.command("--shards shards/own --checkpoint runs/own")(_audit)


def _report(
    *,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="For several runs.")] = Path("runs/comparison"),
) -> None:
    """Of one run: write its report.html. Of several: a comparison table and plots."""
    from server.report.compare import compare, comparison_text
    from server.report.page import write_report

    if len(runs) == 1:
        print(write_report(runs[0]))
    else:
        print(comparison_text(runs), compare(runs, out), sep="\n")


def _name(
    *,
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory or checkpoint.", show_default=False)
    ],
    shards: ShardsFolder = None,
    images: Annotated[int, typer.Option(min=1, metavar="N", help="Images that the page looks at.")] = 60,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show the page on this machine and save from it.")
    ] = False,
    port: Annotated[int, typer.Option(metavar="P", help="Its port (default: a free one).")] = 0,
    names: Annotated[
        Path | None, typer.Option("--names", metavar="FILE", help="Take the names of a TOML file.")
    ] = None,
    labelled: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="M", help="Name and join clusters by a labelled manifest, and score them."
        ),
    ] = None,
    classes: ClassesName = None,
    data_root: DataRoot = None,
) -> None:
    """Name clusters: on a page (names.html), in a small TOML file, or by labelled images.

    The same name joins clusters. Checkpoint, report, masks and ONNX use the names from then on.
    """
    from server.commands import name

    if sum(map(bool, (names, labelled, serve))) > 1:
        raise UserError("--names, --from and --serve are three ways to name clusters; give one of them.")
    if names is not None:
        print(name.use_names_file(run, names))
        return
    if labelled is not None:
        print(name.name_from_labels(run, labelled, classes, data_root, cli.progress_line("segmenting")))
        return
    page = name.write_names_page(run, shards, images, cli.progress_line("segmenting"))
    if not serve:
        print(f"{page}: open it, name clusters, save names.toml, then")
        print(f"  python -m server name {run} --names names.toml")
        return
    server, address = name.serve_page(run, page, port)
    print(f"{address}: name clusters and save; Ctrl-C ends", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


def _audit(
    *,
    shards: ShardsFolder = None,
    checkpoint: Annotated[Path | None, typer.Option(metavar="C", help="Judge its masks.")] = None,
    data_root: DataRoot = None,
) -> None:
    """Warn, without labels, where masks will (or with --checkpoint: do) follow sites or places, not content."""
    from common.data.manifest import read_sites
    from server.commands.audit import audit

    if shards is None:
        raise UserError("No shards were given; use --shards DIR (made by `python -m partitions`).")
    found = audit(checkpoint, read_sites(shards, data_root))
    for one in found:
        print(f"warning: {one.text}")
    if not found:
        print(
            "no warning: sites look alike, and no mask follows a place"
            if checkpoint
            else "no warning: sites look alike"
        )
