"""The site's commands: is this site ready to join, and what has left it?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.command import CommandParser
from common.config import RunConfig, load_config, parse_assignments, read_recipe
from common.errors import EXIT_BAD_INPUT, report_user_errors

_CHECKS = """\
Find out before joining whether this site can take part: one line per check, ok or what is wrong and
what to do. Nothing leaves the site, nothing is written but what pretrained weights are fetched, and
labels stay closed without --labels. Exit code 0 means that all is fine. A running site takes the same
settings from --node-config or from the environment (SITESEG_SHARD, SITESEG_CACHE, ...), which count
here too.
"""


def settings_of(arguments: argparse.Namespace) -> RunConfig:
    """Merge recipe, ``--set`` and the backbone."""
    layers = [read_recipe(arguments.recipe)] if arguments.recipe else []
    layers.append(parse_assignments(arguments.set))
    if arguments.backbone:
        layers.append({"model.backbone": arguments.backbone})
    return load_config(*layers)


def run_check(arguments: argparse.Namespace) -> int:
    """`check`."""
    settings = settings_of(arguments)  # wrong words are refused before anything heavy is imported
    from client.check import Questions, check_site
    from client.site import site_config

    given = {
        "shard": arguments.shard,
        "data-root": arguments.data_root,
        "cache": arguments.cache,
        "state": arguments.state,
        "weights": arguments.weights,
        "device": arguments.device,
        "site": arguments.site,
    }
    site = site_config({key: str(value) for key, value in given.items() if value is not None}, settings)
    asked = Questions(
        config=settings,
        labels=arguments.labels,
        classes=arguments.classes,
        server=arguments.server,
        root_certificates=arguments.root_certificates,
        key=arguments.key,
    )
    if arguments.recipe is None:
        print("no --recipe: checked against the default settings, the run's may differ")
    wrong = 0
    for finding in check_site(site, asked):
        print(finding.lines(), flush=True)
        wrong += finding.verdict == "wrong"
    print(
        f"\nsite {site.name} is ready" if not wrong else f"\n{wrong} to mend before site {site.name} can join"
    )
    return EXIT_BAD_INPUT if wrong else 0


def run_egress(arguments: argparse.Namespace) -> int:
    """`egress`."""
    from client.egress_summary import egress_text

    print(egress_text(arguments.state_dir))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Describe all commands."""
    parser = CommandParser(prog="python -m client", description=__doc__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=CommandParser
    )

    check = commands.add_parser(
        "check",
        help="tell what is wrong with this site before it joins",
        description=_CHECKS,
        epilog="example: python -m client check --shard shards/own/site-0.jsonl --recipe recipes/own-pictures.toml "
        "--server example.org:9092 --root-certificates ca.crt --key site-0",
    )
    check.set_defaults(run=run_check)
    data = check.add_argument_group("pictures")
    data.add_argument("--shard", type=Path, metavar="S", help="this site's manifest (JSON lines)")
    data.add_argument("--data-root", type=Path, metavar="R", help="folder the manifest's paths refer to")
    data.add_argument("--labels", action="store_true", help="open the labels as well")
    data.add_argument("--classes", metavar="T", help="class table for --labels: a name or a JSON file")
    data.add_argument("--site", metavar="NAME", help="name of the site (default: that of the manifest)")
    work = check.add_argument_group("training")
    work.add_argument("--recipe", type=Path, metavar="F", help="settings of the run as TOML (see recipes/)")
    work.add_argument("--backbone", metavar="B", help="frozen backbone, if not as in the recipe")
    work.add_argument(
        "--weights", metavar="F", help="this site's file of the backbone's weights, or 'random'"
    )
    work.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    work.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:0 (default: auto)")
    work.add_argument("--cache", type=Path, metavar="DIR", help="folder for features (default: beside S)")
    work.add_argument("--state", type=Path, metavar="DIR", help="folder for what a site remembers")
    server = check.add_argument_group("server")
    server.add_argument("--server", metavar="HOST:PORT", help="address of the SuperLink's Fleet API")
    server.add_argument("--root-certificates", type=Path, metavar="F", help="PEM file that vouches for it")
    server.add_argument("--key", type=Path, metavar="F", help="this node's private key")

    egress = commands.add_parser(
        "egress",
        help="show what has left this site",
        description="Show what has left this site: messages and bytes by action and by record, first and last.",
        epilog="example: python -m client egress shards/own/cache/state/site-0",
    )
    egress.set_defaults(run=run_egress)
    egress.add_argument(
        "state_dir", type=Path, metavar="STATE_DIR", help="a site's state folder, or one of several sites"
    )
    return parser


@report_user_errors
def main(words: list[str] | None = None) -> int:
    """Parse and run one command; returns the exit code."""
    arguments = build_parser().parse_args(words)
    code: int = arguments.run(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
