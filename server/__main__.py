"""The server's commands: run a simulation, pretrain, score, probe, segment, report, export, show settings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from common.errors import UserError
from common.settings.load import parse_assignments, read_recipe
from common.settings.schema import RunConfig, explained_toml
from common.system import cli
from common.system.cli import Assignments, CommandLine, DataRoot, Recipe

_line = CommandLine("python -m server", __doc__)

_Checkpoint = Annotated[Path, typer.Option(metavar="C", help="File or run directory.")]
_Shards = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder that `partitions` made.")]
_RunDir = Annotated[Path | None, typer.Option(metavar="D", help="Results (default: runs/NAME-seedSEED).")]
_Resume = Annotated[Path | None, typer.Option(metavar="C", help="Checkpoint or run directory to resume.")]
_GpuShare = Annotated[float, typer.Option("--gpus-per-site", metavar="G", help="Share of a GPU per site.")]
_Classes = Annotated[str | None, typer.Option(metavar="T", help="Class table: a name or a JSON file.")]
_Json = Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Write all figures to this file.")]
_Crf = Annotated[bool, typer.Option("--crf", help="Refine with a dense CRF.")]
_Flip = Annotated[bool, typer.Option("--flip", help="Average with the mirrored image.")]
_Site = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="One site's own model; `evaluate` also takes all (see centroids.share)."
    ),
]
_Protocol = Annotated[
    Literal["label-size", "center-320"],
    typer.Option(metavar="P", help="label-size, or center-320: the center crop of 320 pixels as published."),
]


def _cluster(text: str) -> int | str:
    """Read ``auto``, ``global`` or the number of a style cluster."""
    if text not in ("auto", "global") and not text.isdigit():
        raise typer.BadParameter(f"{text!r} is not auto, global or the number of a style cluster")
    return int(text) if text.isdigit() else text


_Cluster = Annotated[
    Any,
    typer.Option(
        parser=_cluster,
        metavar="auto|global|N",
        help="With style clusters: that of the image's style, the shared model, or cluster N's.",
    ),
]


def _load(recipe: Path | None, assignments: list[str], given: Mapping[str, Path | None]) -> RunConfig:
    """Merge recipe, ``--set``, and what options of their own gave by key."""
    # the registered rules bring torch, for which help need not wait
    from server.tasks.base import load_settings

    layers = [read_recipe(recipe)] if recipe else []
    layers += [parse_assignments(assignments), {key: str(path) for key, path in given.items() if path}]
    return load_settings(*layers)


def _run_command(example: str) -> Callable[[Callable[[RunConfig, float], None]], None]:
    """Return a decorator that makes a function of settings and a GPU share a command that starts a run."""

    def register(start: Callable[[RunConfig, float], None]) -> None:
        def command(
            *,
            recipe: Recipe = None,
            shards: _Shards = None,
            data_root: DataRoot = None,
            run_dir: _RunDir = None,
            resume: _Resume = None,
            assignments: Assignments,
            gpu_share: _GpuShare = 0.0,
        ) -> None:
            given = {"simulation.shards": shards, "simulation.data-root": data_root}
            start(_load(recipe, assignments, given | {"run-dir": run_dir, "resume": resume}), gpu_share)

        # typer shows name and docstring of the function that it is given
        command.__name__, command.__doc__ = start.__name__, start.__doc__
        _line.command(example)(command)

    return register


@_run_command("--recipe recipes/camvid-default.toml --set seed=1")
def _simulate(settings: RunConfig, gpu_share: float) -> None:
    """Run a recipe with all sites simulated on this machine, and wait for the result."""
    from server.simulate import simulate

    simulate(settings, gpu_share)


@_run_command("--recipe recipes/camvid-adapt-pretrain-fourier.toml")
def _pretrain(settings: RunConfig, gpu_share: float) -> None:
    """Make the labelled source model of task 'adaptation', in the sites' styles where the recipe says so."""
    from server.simulate import simulate

    if not settings.facts.pretrains:
        raise UserError(f"The recipe's task is '{settings.task}'; pretraining belongs to task 'adaptation'.")
    if settings.source.checkpoint:
        raise UserError(
            f"source.checkpoint is {settings.source.checkpoint}, a model that is pretrained already; leave it out to "
            "pretrain one, or adapt that one by `python -m server simulate`."
        )
    # no round: pretraining alone, kept as round 0
    simulate(settings.model_copy(update={"rounds": 0}), gpu_share)


@_line.command("--checkpoint runs/camvid-default-seed0 --shard shards/camvid/dev.jsonl --json out.json")
def _evaluate(
    *,
    checkpoint: _Checkpoint,
    shard: Annotated[Path, typer.Option(metavar="M", help="Labelled manifest (JSON lines).")],
    data_root: DataRoot = None,
    classes: _Classes = None,
    crf: _Crf = False,
    flip: _Flip = False,
    matching: Annotated[
        Literal["hungarian", "many-to-one", "checkpoint"] | None,
        typer.Option(
            metavar="M",
            help="Clusters to classes: hungarian, many-to-one, or checkpoint for as matched while training "
            "(default: as the run was scored). Models that were trained with classes need none.",
        ),
    ] = None,
    protocol: _Protocol = "label-size",
    cluster: _Cluster = "auto",
    site: _Site = None,
    json_path: _Json = None,
) -> None:
    """Score a checkpoint on a labelled shard."""
    from server.commands.evaluate import evaluate_checkpoint, evaluation_text

    result = evaluate_checkpoint(
        checkpoint,
        shard,
        data_root=data_root,
        classes=classes,
        crf=crf,
        flip=flip,
        json_path=json_path,
        matching=matching,
        protocol=protocol,
        cluster=cluster,
        site=site,
        progress=cli.progress_line("segmenting"),
    )
    print(evaluation_text(result))


@_line.command(
    "--checkpoint runs/camvid-default-seed0 --train shards/camvid/site-*.jsonl --test shards/camvid/dev.jsonl"
)
def _probe(
    *,
    checkpoint: _Checkpoint,
    train: Annotated[list[Path], typer.Option(metavar="M...", help="Labelled manifests to fit on.")],
    test: Annotated[Path, typer.Option(metavar="M", help="Labelled manifest to score on.")],
    data_root: DataRoot = None,
    classes: _Classes = None,
    on: Annotated[
        Literal["code", "features"],
        typer.Option(
            metavar="W", help="code: what the head makes of the features; or features: the backbone's."
        ),
    ] = "code",
    site: _Site = None,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Steps at most.")] = 200,
    protocol: _Protocol = "label-size",
    crf: _Crf = False,
    flip: _Flip = False,
    json_path: _Json = None,
) -> None:
    """Fit a linear classifier with labels on a frozen checkpoint and score it on another shard."""
    from server.commands.probe import probe_checkpoint, probe_text

    result = probe_checkpoint(
        checkpoint,
        train,
        test,
        data_root=data_root,
        classes=classes,
        json_path=json_path,
        on=on,
        site=site,
        steps=steps,
        protocol=protocol,
        crf=crf,
        flip=flip,
        progress=cli.progress_line("probing"),
    )
    print(probe_text(result))


@_line.command("--checkpoint runs/camvid-default-seed0 --out masks my-images/")
def _segment(
    *,
    checkpoint: _Checkpoint,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")],
    crf: _Crf = False,
    flip: _Flip = False,
    cluster: _Cluster = "auto",
    site: _Site = None,
    inputs: Annotated[list[Path], typer.Argument(metavar="IMAGE_OR_FOLDER...", show_default=False)],
) -> None:
    """Segment images: label PNGs, overlays with a legend, and an index page."""
    from server.commands.segment import segment

    progress = cli.progress_line("segmenting")
    print(segment(checkpoint, out, inputs, crf=crf, flip=flip, cluster=cluster, site=site, progress=progress))


@_line.command("--checkpoint runs/camvid-default-seed0 --out model.onnx")
def _export(
    *,
    checkpoint: _Checkpoint,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The ONNX file.")],
    cluster: _Cluster = "global",
    site: _Site = None,
    size: Annotated[
        Any,
        typer.Option(
            parser=cli.parse_size,
            metavar="HxW",
            help="Of the images of a whole model (default: as scored, or as training cut them).",
        ),
    ] = None,
) -> None:
    """Export a checkpoint to ONNX, checked against torch."""
    from server.commands.export import export_onnx

    print(export_onnx(checkpoint, out, cluster=cluster, site=site, size=size))


@_line.command("--recipe recipes/camvid-rule-mean.toml > run.toml")
def _settings(
    *,
    recipe: Recipe = None,
    assignments: Assignments,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Say above each setting what it means and which values it takes."),
    ] = False,
) -> None:
    """Print all settings of a recipe, what it leaves to preset, base and defaults included, as TOML."""
    # imports stand in the commands: `--help` must not wait for torch
    from server.settings.rules import explained_names

    config = _load(recipe, assignments, {})
    print(explained_toml(config, explained_names()) if explain else config.to_toml(), end="")


@_line.command("rules")
def _list(
    *,
    what: Annotated[
        Literal["rules", "objectives", "backbones", "networks", "tasks"],
        typer.Argument(metavar="WHAT", show_default=False),
    ],
) -> None:
    """List the names that settings know: rules, objectives, backbones, networks or tasks, with a line about each."""
    from common.models.backbone import BACKBONES
    from server.settings.rules import REGISTRIES
    from server.tasks.base import SERVER_TASKS

    registries = {**REGISTRIES, "model.backbone": BACKBONES, "task": SERVER_TASKS}
    keys = {"tasks": ["task"], "objectives": ["loss.objective"], "backbones": ["model.backbone"]}
    keys["networks"] = ["network.architecture"]
    for key in keys.get(what, ["centroids.merge", "aggregation.rule", "aggregation.optimizer"]):
        cli.print_table((key, ""), [(entry.name, entry.summary) for entry in registries[key].entries()])


@_line.command("runs/camvid-*")
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


server_main = _line.run

if __name__ == "__main__":
    sys.exit(server_main())
