"""The site's commands: is this site ready to join, how does it take part, and what has left it?"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from common.errors import EXIT_BAD_INPUT, UserError, report_user_errors
from common.settings.load import load_config, parse_assignments, read_recipe
from common.settings.schema import RunConfig
from common.system.cli import CommandParser

_CHECKS = """\
Find out before joining whether this site can take part: one line per check, ok or what is wrong and
what to do. Nothing leaves the site, nothing is written but what pretrained weights are fetched, and
labels stay closed without --labels, unless the recipe's task is 'supervised'. Exit code 0 means that
all is fine. A running site takes the same settings from --node-config or from the environment
(SITESEG_SHARD, SITESEG_CACHE, ...), which count here too.
"""

_SERVE = """\
Take part, with torch imported once: every message starts in a fork of this process, seconds sooner than
with flower-supernode, which does the same work. Runs until SIGTERM or Ctrl-C, and ends with the exit code
of the SuperNode inside. Settings that are not given come from the environment (SITESEG_SHARD, ...).
"""

_SITE_SETTINGS = ("shard", "data_root", "cache", "state", "weights", "device", "gpu_share", "threads", "site")


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
    from client.join.check import Questions, check_site
    from client.site import site_config

    given = {
        "shard": arguments.shard,
        "data-root": arguments.data_root,
        "cache": arguments.cache,
        "state": arguments.state,
        "weights": arguments.weights,
        "device": arguments.device,
        "gpu-share": arguments.gpu_share,
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


def run_serve(arguments: argparse.Namespace) -> int:
    """`serve`."""
    from client.join.connection import parse_address
    from client.join.serve import Node, check_node, serve
    from client.site import ENVIRONMENT_PREFIX, site_config

    # tasks are forks of this process: what it was told they find in the environment
    for key in _SITE_SETTINGS:
        value = getattr(arguments, key)
        if value is not None:
            os.environ[ENVIRONMENT_PREFIX + key.upper()] = str(value)
    if not os.environ.get(ENVIRONMENT_PREFIX + "SHARD"):
        raise UserError(f"This site does not know its shard; give --shard or set {ENVIRONMENT_PREFIX}SHARD.")
    site = site_config({}, RunConfig())
    node = Node(
        name=site.name,
        server=parse_address(arguments.server),
        root_certificates=arguments.root_certificates,
        key=arguments.key,
        port=arguments.port,
    )
    check_node(node, arguments.insecure)
    site.load_shard()
    return serve(node, lambda text: print(text, flush=True))


def run_egress(arguments: argparse.Namespace) -> int:
    """`egress`."""
    from client.ledger.summary import egress_text

    print(egress_text(arguments.state_dir))
    return 0


def add_pictures(group: argparse._ArgumentGroup) -> None:
    """Say where a site's pictures are, and who it is."""
    group.add_argument("--shard", type=Path, metavar="S", help="this site's manifest (JSON lines)")
    group.add_argument("--data-root", type=Path, metavar="R", help="folder the manifest's paths refer to")
    group.add_argument("--site", metavar="NAME", help="name of the site (default: that of the manifest)")


def add_means(group: argparse._ArgumentGroup) -> None:
    """Say what a site works with."""
    group.add_argument(
        "--weights", metavar="F", help="this site's file of the backbone's weights, or 'random'"
    )
    group.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:0 (default: auto)")
    group.add_argument(
        "--gpu-share", metavar="X", help="share of the GPU's memory for this site, above 0 to 1 (default: 1)"
    )
    group.add_argument("--cache", type=Path, metavar="DIR", help="folder for features (default: beside S)")
    group.add_argument("--state", type=Path, metavar="DIR", help="folder for what a site remembers")


def add_identity(group: argparse._ArgumentGroup) -> None:
    """Say how server and site know each other."""
    group.add_argument("--root-certificates", type=Path, metavar="F", help="PEM file that vouches for it")
    group.add_argument("--key", type=Path, metavar="F", help="this node's private key")


def port(word: str) -> int:
    """Read a port; 0 stands for a free one."""
    if not word.isdigit() or int(word) > 65535:
        raise argparse.ArgumentTypeError(f"{word!r} is no port, give a number up to 65535")
    return int(word)


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
    add_pictures(data)
    data.add_argument("--labels", action="store_true", help="open the labels as well")
    data.add_argument("--classes", metavar="T", help="class table for --labels: a name or a JSON file")
    work = check.add_argument_group("training")
    work.add_argument("--recipe", type=Path, metavar="F", help="settings of the run as TOML (see recipes/)")
    work.add_argument("--backbone", metavar="B", help="frozen backbone, if not as in the recipe")
    work.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    add_means(work)
    server = check.add_argument_group("server")
    server.add_argument("--server", metavar="HOST:PORT", help="address of the SuperLink's Fleet API")
    add_identity(server)

    serve = commands.add_parser(
        "serve",
        help="take part, and start every task in a fork that has torch already",
        description=_SERVE,
        epilog="example: python -m client serve --shard shards/own/site-0.jsonl --server example.org:9092 "
        "--root-certificates ca.crt --key site.key",
    )
    serve.set_defaults(run=run_serve)
    add_pictures(serve.add_argument_group("pictures"))
    work = serve.add_argument_group("training")
    add_means(work)
    work.add_argument(
        "--threads", type=int, metavar="N", help="threads of torch (default: as many as it takes)"
    )
    server = serve.add_argument_group("server")
    server.add_argument(
        "--server", required=True, metavar="HOST:PORT", help="address of the SuperLink's Fleet API"
    )
    add_identity(server)
    server.add_argument("--insecure", action="store_true", help="no encryption, no key: on loopback only")
    server.add_argument(
        "--port",
        type=port,
        default=0,
        metavar="N",
        help="port of loopback for its own parts (default: a free one)",
    )

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
