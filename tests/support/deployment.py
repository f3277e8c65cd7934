"""A real Flower deployment on loopback: one SuperLink, several SuperNodes, each with a home of its own.

With a folder of certificates (as ``docker/certs.py`` makes it) it is encrypted, and only registered nodes join.

Every process is ours, starts in its own session, writes to a file, and is ended by its id; ports come from
the system. Nothing waits without a bound.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import httpx
from flwr.common.constant import Status
from flwr.proto.control_pb2 import ListRunsRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from tests.conftest import ROOT

BIN = Path(sys.executable).parent
CONNECTION = "test"


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no daemon outlives a killed test run


class Deployment:
    """Start, talk to and end the processes of one deployment; use as a context manager."""

    def __init__(self, folder: Path, project: Path = ROOT, certificates: Path | None = None) -> None:
        self.folder = folder
        self.project = project
        self.certificates = certificates
        self.http, self.fleet = free_port(), free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Deployment:
        self.folder.mkdir(parents=True, exist_ok=True)
        home = self.home("cli")
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "127.0.0.1:{self.http}"\n'
            + (
                "insecure = true\n"
                if self.certificates is None
                else f'root-certificates = "{self.certificates.resolve()}/public/ca.crt"\n'
            )
        )
        return self

    def __exit__(self, *_: object) -> None:
        for name in sorted(self.processes, key=lambda name: name == "superlink"):  # nodes first
            self.stop(name)

    def home(self, name: str) -> Path:
        """Return a FLWR_HOME for one process: sharing one is a race while the application is unpacked."""
        home = self.folder / "home" / name
        home.mkdir(parents=True, exist_ok=True)
        return home

    def environment(self, name: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of one process."""
        return {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",  # Flower starts its parts by name
            "FLWR_HOME": str(self.home(name)),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
            **(extra or {}),
        }

    def start(self, name: str, command: list[str], extra: Mapping[str, str] | None = None) -> None:
        """Start a process whose output goes to ``NAME.log``."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment(name, extra),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM, seconds: float = 20) -> None:
        """End one process and everything it started."""
        process = self.processes.pop(name, None)
        if process is None:
            return
        for step in (how, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, step)
            try:
                process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                continue
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # children that outlived their parent

    def server_identity(self) -> list[str]:
        """Return the options that make the server encrypted and closed to strangers, or neither."""
        if self.certificates is None:
            return ["--insecure"]
        server = self.certificates / "server"
        return [
            *("--ssl-ca-certfile", str(server / "ca.crt")),
            *("--ssl-certfile", str(server / "server.crt")),
            *("--ssl-keyfile", str(server / "server.key")),
            "--enable-supernode-auth",
        ]

    def site_identity(self, name: str) -> list[str]:
        """Return the options with which a site shows its key and knows the server."""
        if self.certificates is None:
            return ["--insecure"]
        own = self.certificates / "sites" / name
        return [
            *("--root-certificates", str(own / "ca.crt")),
            *("--auth-supernode-private-key", str(own / "site.key")),
        ]

    def start_superlink(self, *options: str, extra: Mapping[str, str] | None = None) -> None:
        """Start the server side."""
        self.start(
            "superlink",
            [
                str(BIN / "flower-superlink"),
                *self.server_identity(),
                "--host",
                "127.0.0.1",
                "--port",
                str(self.http),
                "--fleet-api-address",
                f"127.0.0.1:{self.fleet}",
                *options,
            ],
            extra,
        )

    def listening(self) -> bool:
        """Tell whether the server takes connections of sites."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.fleet)) == 0

    def lasting_superlink(self, extra: Mapping[str, str] | None = None) -> None:
        """Start a SuperLink that remembers everything when it starts again, and runs no application itself."""
        kept = self.folder / "superlink.db"
        self.superlink("--isolation", "process", "--database", str(kept), extra=extra)

    def executor(self, extra: Mapping[str, str] | None = None) -> None:
        """Start what runs the server applications of a SuperLink with ``--isolation process``."""
        identity = ["--insecure"]
        if self.certificates is not None:
            identity = ["--root-certificates", str(self.certificates / "server" / "ca.crt")]
        address = f"127.0.0.1:{self.http}"
        words = [str(BIN / "flower-superexec"), *identity, "--runtime-api-address", address]
        self.start("superexec", words, extra)

    def superlink(self, *options: str, extra: Mapping[str, str] | None = None) -> None:
        """Start the server side and wait until it answers."""
        self.start_superlink(*options, extra=extra)
        url, context = f"http://127.0.0.1:{self.http}/health", None
        if self.certificates is not None:
            url = url.replace("http:", "https:")
            context = ssl.create_default_context(cafile=str(self.certificates / "public" / "ca.crt"))
        end = time.monotonic() + 60
        while time.monotonic() < end and self.processes["superlink"].poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=2, context=context):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise TimeoutError(self.log("superlink"))

    def supernode(
        self,
        name: str,
        node_config: str,
        extra: Mapping[str, str] | None = None,
        identity: list[str] | None = None,
    ) -> None:
        """Start one site; ``identity`` replaces the options by which it joins."""
        self.start(
            name,
            [
                str(BIN / "flower-supernode"),
                *(self.site_identity(name) if identity is None else identity),
                "--superlink",
                f"127.0.0.1:{self.fleet}",
                "--host",
                "127.0.0.1",
                "--port",
                str(free_port()),
                "--node-config",
                node_config,
            ],
            extra,
        )

    def flwr(self, *words: str, seconds: float = 180) -> str:
        """Run the flwr command and return what it printed."""
        done = subprocess.run(
            [str(BIN / "flwr"), *words],
            cwd=self.folder,
            env=self.environment("cli"),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, settings: str, project: Path | None = None) -> int:
        """Submit the project, or another one, with ``--run-config`` settings; return the run id."""
        chosen = str(project or self.project)
        out = self.flwr("run", chosen, CONNECTION, "--run-config", settings, "--format", "json")
        return int(json.loads(out[out.index("{") :])["run-id"])

    def wait(self, run_id: int, seconds: float) -> str:
        """Wait until a run is finished; return what Flower says of it (``finished:completed``)."""
        end = time.monotonic() + seconds
        while not (found := self.status(run_id)).startswith(Status.FINISHED):
            if time.monotonic() > end:
                raise TimeoutError(self.everything())
            time.sleep(0.5)
        return found

    def status(self, run_id: int) -> str:
        """Return what Flower says of a run; the flwr command would take the processor from it each time."""
        known = None if self.certificates is None else (self.certificates / "public" / "ca.crt").read_bytes()
        client = ControlHttpClient.from_server_address(
            f"127.0.0.1:{self.http}",
            insecure=known is None,
            root_certificates=known,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )
        try:
            found = client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        except httpx.TransportError:  # it is about to start again
            return ""
        finally:
            client.close()
        return ":".join(part for part in (found.status, found.sub_status) if part)

    def log(self, name: str) -> str:
        """Return the end of a process's output."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace")[-6000:] if path.is_file() else ""

    def everything(self) -> str:
        """Return the ends of all logs, for a failed test."""
        return "\n".join(
            f"=== {path.name}\n{self.log(path.stem)}" for path in sorted(self.folder.glob("*.log"))
        )
