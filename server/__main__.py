"""The server's commands: run a simulation, pretrain, score, probe, segment, report, export, show settings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.errors import UserError, report_user_errors
from common.settings.explain import explained_toml
from common.settings.load import parse_assignments, read_recipe
from common.settings.schema import RunConfig
from common.system.cli import (
    CommandParser,
    add_cluster_option,
    add_refinements,
    add_site_option,
    image_size,
    positive,
    progress_line,
)
from server.settings.registered import explained_names
from server.tasks.registry import load_settings


def settings_of(arguments: argparse.Namespace) -> RunConfig:
    """Merge recipe, ``--set``, and the options that name folders."""
    given = {
        "simulation.shards": arguments.shards,
        "simulation.data-root": arguments.data_root,
        "run-dir": arguments.run_dir,
        "resume": arguments.resume,
    }
    layers = [read_recipe(arguments.recipe)] if arguments.recipe else []
    layers.append(parse_assignments(arguments.set))
    layers.append({key: str(value) for key, value in given.items() if value is not None})
    return load_settings(*layers)


def run_simulate(arguments: argparse.Namespace) -> None:
    """`simulate`."""
    settings = settings_of(arguments)  # wrong words are refused before anything heavy is imported
    from server.simulate import simulate

    simulate(settings, arguments.gpus_per_site)


def run_pretrain(arguments: argparse.Namespace) -> None:
    """`pretrain`: gather styles, train on the source, stop before the first round."""
    settings = settings_of(arguments)
    if settings.task != "adaptation":
        raise UserError(f"The recipe's task is '{settings.task}'; pretraining belongs to task 'adaptation'.")
    if settings.source.checkpoint:
        raise UserError(
            f"source.checkpoint is {settings.source.checkpoint}, a model that is pretrained already; leave it out to "
            "pretrain one, or adapt that one by `python -m server simulate`."
        )
    from server.simulate import simulate

    simulate(settings.model_copy(update={"rounds": 0}), arguments.gpus_per_site)


def run_evaluate(arguments: argparse.Namespace) -> None:
    """`evaluate`."""
    from server.evaluation.command import evaluate_checkpoint, print_evaluation

    result = evaluate_checkpoint(
        arguments.checkpoint,
        arguments.shard,
        data_root=arguments.data_root,
        classes=arguments.classes,
        crf=arguments.crf,
        flip=arguments.flip,
        json_path=arguments.json,
        matching=arguments.matching,
        protocol=arguments.protocol,
        cluster=arguments.cluster,
        site=arguments.site,
        progress=progress_line("segmenting"),
    )
    print_evaluation(result)


def run_probe(arguments: argparse.Namespace) -> None:
    """`probe`."""
    from server.evaluation.probe import print_probe, probe_checkpoint

    result = probe_checkpoint(
        arguments.checkpoint,
        arguments.train,
        arguments.test,
        data_root=arguments.data_root,
        classes=arguments.classes,
        json_path=arguments.json,
        on=arguments.on,
        site=arguments.site,
        steps=arguments.steps,
        protocol=arguments.protocol,
        crf=arguments.crf,
        flip=arguments.flip,
        progress=progress_line("probing"),
    )
    print_probe(result)


def run_settings(arguments: argparse.Namespace) -> None:
    """`settings`."""
    layers = [read_recipe(arguments.recipe)] if arguments.recipe else []
    config = load_settings(*layers, parse_assignments(arguments.set))
    print(explained_toml(config, explained_names()) if arguments.explain else config.to_toml(), end="")


def run_segment(arguments: argparse.Namespace) -> None:
    """`segment`."""
    from server.inference.segment import segment

    index = segment(
        arguments.checkpoint,
        arguments.out,
        arguments.inputs,
        crf=arguments.crf,
        flip=arguments.flip,
        cluster=arguments.cluster,
        site=arguments.site,
        progress=progress_line("segmenting"),
    )
    print(index)


def run_export(arguments: argparse.Namespace) -> None:
    """`export`."""
    from server.inference.export import export_onnx

    path = export_onnx(
        arguments.checkpoint,
        arguments.out,
        cluster=arguments.cluster,
        site=arguments.site,
        size=arguments.size,
    )
    print(path)


def run_report(arguments: argparse.Namespace) -> None:
    """`report`."""
    from server.report.page import compare, comparison_text, write_report

    if len(arguments.runs) == 1:
        print(write_report(arguments.runs[0]))
    else:
        page = compare(arguments.runs, arguments.out)
        print(comparison_text(arguments.runs))
        print(page)


def add_run_options(command: argparse.ArgumentParser) -> None:
    """Add what a command that starts a run can be told."""
    command.add_argument("--recipe", type=Path, metavar="F", help="settings as TOML (see recipes/)")
    command.add_argument("--shards", type=Path, metavar="DIR", help="folder made by `python -m partitions`")
    command.add_argument("--data-root", type=Path, metavar="R", help="folder the manifests' paths refer to")
    command.add_argument("--run-dir", type=Path, metavar="D", help="results (default: runs/NAME-seedSEED)")
    command.add_argument(
        "--resume", type=Path, metavar="C", help="go on from this checkpoint or run directory"
    )
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    command.add_argument(
        "--gpus-per-site", type=float, default=0.0, metavar="G", help="share of a GPU per site"
    )


def build_parser() -> argparse.ArgumentParser:
    """Describe all commands."""
    parser = CommandParser(prog="python -m server", description=__doc__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=CommandParser
    )

    def add(name: str, run: object, text: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example: python -m server {name} {example}",
        )
        command.set_defaults(run=run)
        return command

    simulate = add(
        "simulate",
        run_simulate,
        "Run a recipe with all sites simulated on this machine, and wait for the result.",
        "--recipe recipes/camvid-default.toml --set seed=1",
    )
    add_run_options(simulate)

    pretrain = add(
        "pretrain",
        run_pretrain,
        "Make the labelled source model of task 'adaptation', in the sites' styles where the recipe says so.",
        "--recipe recipes/camvid-adapt-pretrain-fourier.toml",
    )
    add_run_options(pretrain)

    evaluate = add(
        "evaluate",
        run_evaluate,
        "Score a checkpoint on a labelled shard.",
        "--checkpoint runs/camvid-default-seed0 --shard shards/camvid/dev.jsonl --json out.json",
    )
    evaluate.add_argument("--checkpoint", type=Path, required=True, metavar="C", help="file or run directory")
    evaluate.add_argument(
        "--shard", type=Path, required=True, metavar="M", help="labelled manifest (JSON lines)"
    )
    evaluate.add_argument("--data-root", type=Path, metavar="R", help="folder the manifest's paths refer to")
    evaluate.add_argument("--classes", metavar="T", help="class table: a name or a JSON file")
    add_refinements(evaluate)
    evaluate.add_argument(
        "--matching",
        choices=("hungarian", "many-to-one", "checkpoint"),
        help="clusters to classes (default: as the run was scored); checkpoint: as matched while training; "
        "networks that were trained with classes need none",
    )
    evaluate.add_argument(
        "--protocol",
        choices=("label-size", "center-320"),
        default="label-size",
        help="score at the label's size, or the centre crop of 320 pixels as in the published evaluation",
    )
    add_cluster_option(evaluate, "auto")
    add_site_option(evaluate, every=True)
    evaluate.add_argument("--json", type=Path, metavar="OUT", help="write all figures to this file")

    probe = add(
        "probe",
        run_probe,
        "Fit a linear classifier with labels on a frozen checkpoint and score it on another shard.",
        "--checkpoint runs/camvid-default-seed0 --train shards/camvid/site-*.jsonl --test shards/camvid/dev.jsonl",
    )
    probe.add_argument("--checkpoint", type=Path, required=True, metavar="C", help="file or run directory")
    probe.add_argument(
        "--train", type=Path, required=True, nargs="+", metavar="M", help="labelled manifests to fit on"
    )
    probe.add_argument("--test", type=Path, required=True, metavar="M", help="labelled manifest to score on")
    probe.add_argument("--data-root", type=Path, metavar="R", help="folder the manifests' paths refer to")
    probe.add_argument("--classes", metavar="T", help="class table: a name or a JSON file")
    probe.add_argument(
        "--on",
        choices=("code", "features"),
        default="code",
        help="what the head makes of the features (default), or the features of the backbone themselves",
    )
    add_site_option(probe)
    probe.add_argument(
        "--steps", type=positive, default=200, metavar="N", help="steps at most (default: 200)"
    )
    probe.add_argument(
        "--protocol",
        choices=("label-size", "center-320"),
        default="label-size",
        help="as in `evaluate`; holds for fitting and scoring",
    )
    add_refinements(probe)
    probe.add_argument("--json", type=Path, metavar="OUT", help="write all figures to this file")

    segment = add(
        "segment",
        run_segment,
        "Segment pictures: label PNGs, overlays with a legend, and an index page.",
        "--checkpoint runs/camvid-default-seed0 --out masks my-pictures/",
    )
    segment.add_argument("--checkpoint", type=Path, required=True, metavar="C", help="file or run directory")
    segment.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    add_refinements(segment)
    add_cluster_option(segment, "auto")
    add_site_option(segment)
    segment.add_argument("inputs", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER")

    export = add(
        "export",
        run_export,
        "Export a checkpoint to ONNX, checked against torch.",
        "--checkpoint runs/camvid-default-seed0 --out model.onnx",
    )
    export.add_argument("--checkpoint", type=Path, required=True, metavar="C", help="file or run directory")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="the ONNX file")
    add_cluster_option(export, "global")
    add_site_option(export)
    export.add_argument(
        "--size",
        type=image_size,
        metavar="HxW",
        help="of the images of a whole network (default: as scored, or as training cut them)",
    )

    settings = add(
        "settings",
        run_settings,
        "Print all settings of a recipe, what it leaves to preset, base and defaults included, as TOML.",
        "--recipe recipes/camvid-rule-mean.toml > run.toml",
    )
    settings.add_argument("--recipe", type=Path, metavar="F", help="settings as TOML (see recipes/)")
    settings.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting"
    )
    settings.add_argument(
        "--explain",
        action="store_true",
        help="say above each setting what it means and which values it takes",
    )

    report = add(
        "report",
        run_report,
        "One run: write its report.html. Several: a comparison table and plots.",
        "runs/camvid-*",
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR")
    report.add_argument(
        "--out", type=Path, default=Path("runs/comparison"), metavar="DIR", help="for several runs"
    )
    return parser


@report_user_errors
def main(words: list[str] | None = None) -> None:
    """Parse and run one command."""
    arguments = build_parser().parse_args(words)
    arguments.run(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
