"""Serves a site with torch imported once: a SuperNode and the executor of its tasks.

A SuperNode and, in the place of Flower's executor, `WarmTasks`: both are this process and its forks, and end with
it. ``flower-supernode`` does the same work, seconds slower for every message.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from client.join.connection import Address, check_certificates, check_key
from client.join.warm import WarmTasks, end, exit_code, fork, preload
from common.errors import UserError

LOOPBACK = "127.0.0.1"  # node and tasks talk here alone: unencrypted, and no other machine can listen
# a SuperNode asks the server for work every 3 s, its tasks for answers every 0.5 s; this many times as often
HURRY = 5.0

_LOOK_SECONDS = 0.1  # a look costs 4 ms of processor time, in two processes, all day
_NODE_STOP_SECONDS = 4.0  # a SuperNode says goodbye to the server, which may be far away; with tasks below 10


@dataclass(frozen=True)
class Node:
    """How a site joins: ``root_certificates`` None means not encrypted; ``port`` is local, 0 takes a free one."""

    name: str
    server: Address
    root_certificates: Path | None
    key: Path | None
    port: int = 0

    def command_line(self, port: int, secret_file: str) -> list[str]:
        """Return the command line of the SuperNode."""
        command = ["flower-supernode", "--superlink", str(self.server)]
        command += ["--host", LOOPBACK, "--port", str(port)]
        command += ["--isolation", "process", "--superexec-auth-secret-file", secret_file]
        command += ["--node-config", f'site="{self.name}"']
        if self.root_certificates is None:
            return [*command, "--insecure"]
        command += ["--root-certificates", str(self.root_certificates)]
        return command if self.key is None else [*command, "--auth-supernode-private-key", str(self.key)]


def check_node(node: Node, insecure: bool) -> None:
    """Refuse with a `UserError` what could not work, or would be open to others on the way."""
    if not hasattr(os, "fork"):
        raise UserError("This system cannot fork processes, which serve needs; use flower-supernode instead.")
    if insecure:
        if node.root_certificates is not None or node.key is not None:
            raise UserError(
                "--insecure excludes --root-certificates and --key; leave it out to join encrypted."
            )
        if not is_loopback(node.server.host):
            raise UserError(
                f"--insecure is for servers on this machine, and {node.server.host} is another; "
                "give --root-certificates and --key."
            )
        return
    if node.root_certificates is None:
        raise UserError(
            "--root-certificates is missing; give the server's ca.crt, or --insecure for a trial on this machine."
        )
    check_certificates(node.root_certificates)
    if node.key is not None:
        check_key(node.key)


def is_loopback(host: str) -> bool:
    """Tell whether a name or address can only mean this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def local_port(wanted: int) -> int:
    """Return ``wanted``, or a free port for 0; raises `UserError` where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError as error:
            raise UserError(
                f"Port {wanted} of this machine cannot be used ({error.strerror}); give another by --port."
            ) from None
        return int(probe.getsockname()[1])


def run_supernode(command: list[str], parent: int) -> NoReturn:
    """Be ``flower-supernode``; ends when the parent does."""
    from flwr.supercore.app_utils import start_parent_process_monitor
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    # its waiting times are written into that module
    hurried: Any = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / HURRY))
    vars(start_client_internal)["time"] = hurried
    start_parent_process_monitor(parent)
    sys.argv = command
    flower_supernode()
    raise SystemExit(0)


def serve(node: Node, notice: Callable[[str], None]) -> int:
    """Take part until SIGTERM or Ctrl-C (0), or until the SuperNode ends (its code)."""
    asked_to_stop: list[int] = []
    warm = False

    def asked(received: int, _: object) -> None:
        asked_to_stop.append(received)
        if not warm:  # torch takes seconds to import, and nothing has to be seen to yet
            raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, asked)
    port, secret = local_port(node.port), secrets.token_bytes(32)
    reading, writing = os.pipe()  # the secret never lies on a disk
    os.write(writing, secret)
    os.close(writing)
    command = node.command_line(port, f"/dev/fd/{reading}")
    parent = os.getpid()
    # before torch is in memory, which it has no use for
    supernode = fork(lambda: run_supernode(command, parent))
    os.close(reading)
    alive = [supernode]
    try:
        began = time.monotonic()
        preload()
        warm = True
        notice(f"site {node.name} is warm after {time.monotonic() - began:.1f} s and waits for tasks")
        tasks = WarmTasks(f"{LOOPBACK}:{port}", secret, notice)
        try:
            while not asked_to_stop:
                code = exit_code(supernode)
                if code is not None:
                    alive.clear()
                    notice(f"the SuperNode of site {node.name} has ended with code {code}")
                    return code if code >= 0 else 1
                tasks.step()
                time.sleep(_LOOK_SECONDS)
        finally:
            tasks.stop()
    finally:
        end(alive, _NODE_STOP_SECONDS)
    notice(f"site {node.name} has left")
    return 0
