"""The site's commands: whether it is ready to join, taking part, and what has left it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import EXIT_BAD_INPUT, UserError
from common.settings.load import load_config, parse_assignments, read_recipe
from common.settings.schema import RunConfig
from common.system.cli import CommandLine, print_table

_line = CommandLine("python -m client", __doc__)


def _option(group: str, metavar: str | None, text: str, *names: str, **more: Any) -> Any:
    """Describe an option that the help shows in a group."""
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=group, show_default=False, **more)


_IMAGES, _TRAINING, _SERVER = "Images", "Training", "Server"
_Shard = Annotated[Path | None, _option(_IMAGES, "S", "This site's manifest (JSON lines).")]
_DataRoot = Annotated[Path | None, _option(_IMAGES, "R", "Folder the manifest's paths refer to.")]
_Site = Annotated[str | None, _option(_IMAGES, "NAME", "Name of the site (default: that of the manifest).")]
_Weights = Annotated[
    str | None, _option(_TRAINING, "F", "This site's file of the backbone's weights, or 'random'.")
]
_Device = Annotated[str | None, _option(_TRAINING, "D", "auto, cpu, cuda or cuda:0 (default: auto).")]
_GpuShare = Annotated[
    str | None, _option(_TRAINING, "X", "Share of the GPU's memory for this site, above 0 to 1 (default: 1).")
]
_Cache = Annotated[Path | None, _option(_TRAINING, "DIR", "Folder for features (default: beside S).")]
_State = Annotated[Path | None, _option(_TRAINING, "DIR", "Folder for what a site remembers.")]
_Policy = Annotated[Path | None, _option(_SERVER, "F", "This site's policy (`client policy`).", "--policy")]
_Certificates = Annotated[Path | None, _option(_SERVER, "F", "PEM file that vouches for the server.")]
_Key = Annotated[Path | None, _option(_SERVER, "F", "This node's private key.")]
_ADDRESS = "Address of the SuperLink's Fleet API."
_SITE_KEYS = (
    "shard",
    "data-root",
    "site",
    "weights",
    "device",
    "gpu-share",
    "cache",
    "state",
    "threads",
    "policy",
)


def _told(*values: object) -> dict[str, str]:
    """Return those of a site's own settings that were given, by key; values in the order of `_SITE_KEYS`."""
    return {key: str(value) for key, value in zip(_SITE_KEYS, values, strict=False) if value is not None}


@_line.command(
    "--shard shards/own/site-0.jsonl --recipe recipes/own-pictures.toml --server example.org:9092 "
    "--root-certificates ca.crt --key site-0"
)
def _check(
    *,
    shard: _Shard = None,
    data_root: _DataRoot = None,
    site: _Site = None,
    labels: Annotated[bool, _option(_IMAGES, None, "Open the labels as well.", "--labels")] = False,
    classes: Annotated[
        str | None, _option(_IMAGES, "T", "Class table for --labels: a name or a JSON file.")
    ] = None,
    recipe: Annotated[
        Path | None, _option(_TRAINING, "F", "Settings of the run as TOML (see recipes/).")
    ] = None,
    backbone: Annotated[
        str | None, _option(_TRAINING, "B", "Frozen backbone, if not as in the recipe.")
    ] = None,
    assignments: Annotated[
        list[str],
        _option(_TRAINING, "KEY=VALUE", "Override a setting.", "--set", default_factory=list),
    ],
    weights: _Weights = None,
    device: _Device = None,
    gpu_share: _GpuShare = None,
    cache: _Cache = None,
    state: _State = None,
    server: Annotated[str | None, _option(_SERVER, "HOST:PORT", _ADDRESS)] = None,
    root_certificates: _Certificates = None,
    key: _Key = None,
) -> int:
    """Tell what is wrong with this site before it joins: one line per check, and what to do.

    Nothing leaves the site, nothing is written but pretrained weights that are fetched, and labels stay closed
    without --labels, unless the recipe's task is 'supervised'. Exit code 0 means that all is fine. Settings that are
    not given come from the environment (SITESEG_SHARD, SITESEG_CACHE, ...).
    """
    layers = [read_recipe(recipe)] if recipe else []
    layers.append(parse_assignments(assignments))
    if backbone:
        layers.append({"model.backbone": backbone})
    settings = load_config(*layers)  # a wrong setting is refused before anything heavy is imported
    from client.join.check import Questions, check_site
    from client.site import site_config

    told = _told(shard, data_root, site, weights, device, gpu_share, cache, state)
    known = site_config(told, settings)
    asked = Questions(settings, labels, classes, server, root_certificates, key)
    if recipe is None:
        print("no --recipe: checked against the default settings, the run's may differ")
    wrong = 0
    for finding in check_site(known, asked):
        print(finding.lines(), flush=True)
        wrong += finding.verdict == "wrong"
    verdict = f"{wrong} to mend before site {known.name} can join" if wrong else f"site {known.name} is ready"
    print(f"\n{verdict}")
    return EXIT_BAD_INPUT if wrong else 0


@_line.command(
    "--shard shards/own/site-0.jsonl --server example.org:9092 --root-certificates ca.crt --key site.key"
)
def _serve(
    *,
    shard: _Shard = None,
    data_root: _DataRoot = None,
    site: _Site = None,
    weights: _Weights = None,
    device: _Device = None,
    gpu_share: _GpuShare = None,
    cache: _Cache = None,
    state: _State = None,
    threads: Annotated[
        int | None, _option(_TRAINING, "N", "Threads of torch (default: as many as it takes).")
    ] = None,
    policy: _Policy = None,
    server: Annotated[str, _option(_SERVER, "HOST:PORT", _ADDRESS)],
    root_certificates: _Certificates = None,
    key: _Key = None,
    insecure: Annotated[
        bool, _option(_SERVER, None, "No encryption, no key: on loopback only.", "--insecure")
    ] = False,
    port: Annotated[
        int, _option(_SERVER, "N", "Port of loopback for its own parts (default: free).", min=0, max=65535)
    ] = 0,
) -> int:
    """Take part, and start every task in a fork that has torch already: seconds sooner than flower-supernode.

    Runs until SIGTERM or Ctrl-C, and ends with the exit code of the SuperNode inside. Settings that are not given
    come from the environment (SITESEG_SHARD, ...).
    """
    from client.join.connection import parse_address
    from client.join.serve import Node, check_node, serve
    from client.policy import read_policy
    from client.site import environment_name, site_config

    told = _told(shard, data_root, site, weights, device, gpu_share, cache, state, threads, policy)
    # tasks are forks of this process: what it was told they find in the environment
    os.environ |= {environment_name(key): value for key, value in told.items()}
    if key is not None:
        os.environ[environment_name("key")] = str(key.resolve())  # which also signs what a secure sum is of
    name = environment_name("shard")
    if not os.environ.get(name):
        raise UserError(f"This site does not know its shard; give --shard or set {name}.")
    known = site_config({}, RunConfig())
    known.load_shard()  # a file that is not there is said before a name that it would not give
    known.need_name()
    node = Node(known.name, parse_address(server), root_certificates, key, port)
    check_node(node, insecure)
    if known.policy is not None:
        read_policy(known.policy)
    return serve(node, lambda text: print(text, flush=True))


@_line.command("shards/own/cache/state/site-0")
def _egress(
    *,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="STATE_DIR", help="A site's state folder, or one of several.", show_default=False
        ),
    ],
) -> None:
    """Show what has left this site: messages and bytes by action and by record, first and last."""
    from client.ledger import egress_text

    print(egress_text(folder))


client_commands, client_main = _line, _line.run

_PolicyFile = Annotated[Path, typer.Argument(metavar="POLICY", help="The file.", show_default=False)]


@_line.command("/etc/siteseg/policy.toml --write")
def _policy(
    *,
    file: _PolicyFile,
    write: Annotated[
        bool, typer.Option("--write", help="Write one with every rule and its meaning, to be edited.")
    ] = False,
    state: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The site's state folder: shows epsilon so far.")
    ] = None,
) -> None:
    """Write, or explain, the rules by which this site answers: tasks, noise, secure sums, code."""
    from client import policy
    from common.system.atomic import atomic_write_text

    if write:
        if file.exists():
            raise UserError(f"{file} exists; edit it, or remove it first.")
        atomic_write_text(file, policy.policy_toml(policy.Policy()))
    known = policy.read_policy(file)
    given = None if state is None else policy.epsilon_given(known, state)
    print_table(("rule", "value", "meaning"), policy.explained(known, given))
    for application in policy.approved(file):
        print(f"approved application {application}")


@_line.command("--policy /etc/siteseg/policy.toml 3f5a...")
def _approve(
    *,
    file: Annotated[Path, typer.Option("--policy", metavar="POLICY", help="This site's policy.")],
    application: Annotated[
        str, typer.Argument(metavar="HASH", help="As the site's log shows it.", show_default=False)
    ],
) -> None:
    """Let an application run at this site; `client serve` refuses all others before any of their code runs."""
    from client import policy

    policy.approve(file, application)
    print(f"application {application} may run at this site")


if __name__ == "__main__":
    sys.exit(client_main())
