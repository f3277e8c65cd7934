"""The operator's commands: register sites, start a run and turn its verdict into an exit code.

    python docker/control.py register --ca certificates/public/ca.crt certificates/public
    python docker/control.py run --ca certificates/public/ca.crt --recipe recipes/NAME.toml --runs runs

Both talk to the control port of the SuperLink. Whoever reaches it runs code at every site, so it listens on
loopback (or, in containers, on a network that no site is on). `flwr run --stream` exits 0 even where the run
failed; `run` here waits and asks `flwr list`: 0 is a finished run, 1 a failed one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # it runs from a checkout that need not be installed

from common.errors import UserError
from common.settings.load import parse_assignments, read_recipe

CONNECTION = "federation"
PROJECT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 3.0
PATIENCE = 20  # a SuperLink that restarts is away for a while; its runs are not lost
ALREADY_REGISTERED = "Public key already in use"


class ControlError(UserError):
    """The control port or the flwr command refused; the message is one sentence."""


def connection_toml(address: str, certificate: Path | None) -> str:
    """Return Flower's settings for one connection; without a certificate it is not encrypted."""
    secured = (
        "insecure = true"
        if certificate is None
        else f"root-certificates = {json.dumps(str(certificate.resolve()))}"
    )
    return (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n'
        f"[superlink.{CONNECTION}]\naddress = {json.dumps(address)}\n{secured}\n"
    )


def read_settings(recipe: Path | None, assignments: Sequence[str]) -> dict[str, Any]:
    """Merge a recipe with ``key=value`` words as `common.settings.load` reads them; raises `UserError`."""
    return (read_recipe(recipe) if recipe else {}) | parse_assignments(list(assignments))


def settings_toml(settings: Mapping[str, Any]) -> str:
    """Write settings as dotted TOML keys; JSON's scalars are TOML's."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())


def one_line(text: str) -> str:
    """Return what flwr said without the lines it was broken into."""
    return re.sub(r"\s+", " ", text).strip()


class Control:
    """The flwr command with a home of its own, that is gone afterwards."""

    def __init__(self, home: Path, address: str, certificate: Path | None) -> None:
        self.environment = {
            **os.environ,
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
        }
        (home / "config.toml").write_text(connection_toml(address, certificate), encoding="utf-8")

    def command(self, *words: str) -> list[str]:
        """Return the command line of ``flwr`` beside this interpreter, or on the path."""
        beside = Path(sys.executable).with_name("flwr")
        return [str(beside) if beside.exists() else "flwr", *words]

    def flwr(self, *words: str) -> str:
        """Run ``flwr`` and return its output; raises `ControlError` with what it said."""
        done = subprocess.run(
            self.command(*words),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        said = done.stdout + done.stderr
        if done.returncode != 0:
            raise ControlError(one_line(said) or f"flwr exited with {done.returncode}")
        return done.stdout

    def ask(self, *words: str) -> dict[str, Any]:
        """Run ``flwr`` and read the JSON it prints."""
        said = self.flwr(*words, "--format", "json")
        try:
            answer: dict[str, Any] = json.loads(said[said.index("{") :])
        except ValueError:
            raise ControlError(f"flwr gave no answer that can be read: {one_line(said)}") from None
        if answer.get("success") is False:
            raise ControlError(one_line(str(answer.get("error-message", answer))))
        return answer

    def verdict(self, run_id: int) -> dict[str, Any]:
        """Wait until a run is finished; return Flower's record of it."""
        failures = 0
        while True:
            try:
                found: dict[str, Any] = self.ask("list", CONNECTION, "--run-id", str(run_id))["runs"][0]
                failures = 0
                if str(found["status"]).startswith("finished"):
                    return found
            except (ControlError, subprocess.TimeoutExpired):
                failures += 1
                if failures >= PATIENCE:
                    raise
            time.sleep(POLL_SECONDS)


def register(control: Control, sources: Sequence[Path]) -> None:
    """Register public keys, each under its file's name; those that are known already are left alone."""
    keys = [
        key for source in sources for key in (sorted(source.glob("*.pub")) if source.is_dir() else [source])
    ]
    if not keys:
        raise ControlError(f"{sources[0]} holds no public key NAME.pub; make one with `certs.py site NAME`.")
    for key in keys:
        try:
            control.ask("supernode", "register", str(key), CONNECTION, "--name", key.stem)
            print(f"{key.stem}: registered", flush=True)
        except ControlError as error:
            if ALREADY_REGISTERED not in str(error):
                raise ControlError(f"{key.stem}: {error}") from None
            print(f"{key.stem}: was registered already", flush=True)


def resumed_run(settings: dict[str, Any]) -> str:
    """Return the run directory that ``resume`` names, by itself or by one of its checkpoints; empty without it."""
    given = str(settings.get("resume", ""))
    return str(Path(given).parents[1]) if given.endswith((".safetensors", ".json")) else given


def run(control: Control, settings: dict[str, Any], runs: Path, shown: Path, home: Path) -> int:
    """Start a run, show its log, wait for its verdict; return the exit code."""
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    folder = f"{settings.get('name', 'run')}-{stamp}"
    settings.setdefault("run-dir", resumed_run(settings) or str(runs / folder))
    shown = shown / folder if settings["run-dir"] == str(runs / folder) else Path(settings["run-dir"])
    file = home / "settings.toml"
    file.write_text(settings_toml(settings), encoding="utf-8")
    run_id = int(control.ask("run", str(PROJECT), CONNECTION, "--run-config", str(file))["run-id"])
    print(f"run {run_id} started", flush=True)
    log = subprocess.Popen(
        control.command("log", str(run_id), CONNECTION, "--stream"), env=control.environment
    )
    try:
        found = control.verdict(run_id)
    except KeyboardInterrupt:
        control.flwr("stop", str(run_id), CONNECTION)
        print(f"run {run_id} stopped; go on with --set resume={settings['run-dir']}", file=sys.stderr)
        return 130
    finally:
        log.terminate()
        log.wait(20)
    if found["status"] != "finished:completed":
        details = found.get("status-details") or "see the log of the server application"
        print(f"error: run {run_id} is {found['status']}: {details}", file=sys.stderr)
        return 1
    print(f"run {run_id} completed; report: {shown / 'report.html'}", flush=True)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Describe the command."""
    parser = argparse.ArgumentParser(
        prog="control.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    registering = commands.add_parser("register", help="let sites join: register their public keys")
    registering.add_argument(
        "keys", nargs="+", type=Path, metavar="KEY", help="NAME.pub, or a folder of them"
    )
    running = commands.add_parser("run", help="start a run and wait for its verdict")
    running.add_argument("--recipe", type=Path, metavar="F", help="settings as TOML")
    running.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    running.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where the server application puts results",
    )
    running.add_argument("--shown", type=Path, metavar="DIR", help="how that folder is called for the reader")
    for command in (registering, running):
        command.add_argument(
            "--address", default="127.0.0.1:8000", help="control port (default: %(default)s)"
        )
        command.add_argument(
            "--ca", type=Path, metavar="FILE", help="authority's certificate; absent: no TLS"
        )
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; a refusal gives one sentence and exit code 1."""
    arguments = build_parser().parse_args(words)
    with tempfile.TemporaryDirectory(prefix="siteseg-control-") as folder:
        home = Path(folder)
        try:
            control = Control(home, arguments.address, arguments.ca)
            if arguments.command == "register":
                register(control, arguments.keys)
                return 0
            settings = read_settings(arguments.recipe, arguments.set)
            runs = arguments.runs.absolute()
            return run(control, settings, runs, arguments.shown or runs, home)
        except (UserError, subprocess.TimeoutExpired) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
