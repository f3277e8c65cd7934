"""The server's commands: run a simulation, pretrain, score, probe, segment, report, export, show settings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from common.errors import UserError
from common.settings.load import parse_assignments, read_recipe
from common.settings.schema import RunConfig, explained_toml
from common.system import cli
from common.system.cli import Assignments, CommandLine, DataRoot, Recipe
from server import run_commands
from server.options import (
    Channels,
    CheckpointPath,
    ClassesName,
    ClusterChoice,
    Crf,
    Flip,
    GpuShare,
    HubFolder,
    ImageSize,
    JsonPath,
    KeepMasks,
    NoSkipUnreadable,
    OnnxPath,
    ProtocolName,
    ResumePath,
    RunFolder,
    ShardsFolder,
    SiteName,
    SkipUnreadable,
    Window,
)

_line = CommandLine("python -m server", __doc__)


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
            shards: ShardsFolder = None,
            data_root: DataRoot = None,
            run_dir: RunFolder = None,
            resume: ResumePath = None,
            assignments: Assignments,
            gpu_share: GpuShare = 0.0,
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
    checkpoint: CheckpointPath,
    shard: Annotated[Path, typer.Option(metavar="M", help="Labelled manifest (JSON lines).")],
    data_root: DataRoot = None,
    classes: ClassesName = None,
    crf: Crf = False,
    flip: Flip = False,
    matching: Annotated[
        Literal["hungarian", "many-to-one", "checkpoint"] | None,
        typer.Option(
            metavar="M",
            help="Clusters to classes: hungarian, many-to-one, or checkpoint for as matched while training "
            "(default: as the run was scored). Models that were trained with classes need none.",
        ),
    ] = None,
    protocol: ProtocolName = "label-size",
    cluster: ClusterChoice = "auto",
    site: SiteName = None,
    skip_unreadable: SkipUnreadable = False,
    json_path: JsonPath = None,
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
        skip_unreadable=skip_unreadable,
        progress=cli.progress_line("segmenting"),
    )
    print(evaluation_text(result))


@_line.command(
    "--checkpoint runs/camvid-default-seed0 --train shards/camvid/site-*.jsonl --test shards/camvid/dev.jsonl"
)
def _probe(
    *,
    checkpoint: CheckpointPath,
    train: Annotated[list[Path], typer.Option(metavar="M...", help="Labelled manifests to fit on.")],
    test: Annotated[Path, typer.Option(metavar="M", help="Labelled manifest to score on.")],
    data_root: DataRoot = None,
    classes: ClassesName = None,
    on: Annotated[
        Literal["code", "features"],
        typer.Option(
            metavar="W", help="code: what the head makes of the features; or features: the backbone's."
        ),
    ] = "code",
    site: SiteName = None,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Steps at most.")] = 200,
    protocol: ProtocolName = "label-size",
    crf: Crf = False,
    flip: Flip = False,
    json_path: JsonPath = None,
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
    checkpoint: CheckpointPath,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")],
    crf: Crf = False,
    flip: Flip = False,
    cluster: ClusterChoice = "auto",
    site: SiteName = None,
    no_skip_unreadable: NoSkipUnreadable = False,
    keep_masks: KeepMasks = False,
    channels: Channels = None,
    window: Window = None,
    inputs: Annotated[list[Path], typer.Argument(metavar="IMAGE_OR_FOLDER...", show_default=False)],
) -> None:
    """Segment images: label PNGs, overlays with a legend, and an index page."""
    from common.data.formats import parse_reading
    from server.commands.segment import segment

    index = segment(
        checkpoint,
        out,
        inputs,
        crf=crf,
        flip=flip,
        cluster=cluster,
        site=site,
        skip_unreadable=not no_skip_unreadable,
        keep_masks=keep_masks,
        reading=parse_reading(window, channels),
        progress=cli.progress_line("segmenting"),
    )
    print(index)


@_line.command("--checkpoint runs/camvid-default-seed0 --out model.onnx")
def _export(
    *,
    checkpoint: CheckpointPath,
    out: OnnxPath = None,
    hub: HubFolder = None,
    cluster: ClusterChoice = "global",
    site: SiteName = None,
    size: ImageSize = None,
) -> None:
    """Export a checkpoint to ONNX, checked against torch, or to a folder that a model hub can hold."""
    from server.commands.export import export_onnx
    from server.commands.hub import export_hub

    if out is None and hub is None:
        raise UserError("Nothing says where the model goes; give --out FILE for ONNX or --hub DIR.")
    if out is not None:
        print(export_onnx(checkpoint, out, cluster=cluster, site=site, size=size))
    if hub is not None:
        print(export_hub(checkpoint, hub, cluster=cluster, site=site))


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


run_commands.register(_line)
server_commands, server_main = _line, _line.run

if __name__ == "__main__":
    sys.exit(server_main())
