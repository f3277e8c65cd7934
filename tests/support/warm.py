"""A site of a deployment that takes part by ``python -m client serve``, and the processes below it."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.conftest import ROOT
from tests.support.deployment import Deployment


def start_warm_site(
    net: Deployment,
    name: str,
    site: str,
    shard: Path,
    cache: Path,
    *identity: str,
    threads: int = 1,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Start one site; ``identity`` are the words by which it joins, ``--insecure`` where there are none."""
    words = ["--site", site, "--shard", str(shard), "--cache", str(cache), "--threads", str(threads)]
    words += ["--server", f"127.0.0.1:{net.fleet}", *(identity or ("--insecure",))]
    environment = {"PYTHONPATH": str(ROOT), **(extra or {})}
    net.start(name, [sys.executable, "-m", "client", "serve", *words], environment)


def started_tasks(net: Deployment, name: str) -> list[int]:
    """Return the ids of the processes that a warm site has forked for tasks so far."""
    said = (net.folder / f"{name}.log").read_text(errors="replace")
    return [int(found) for found in re.findall(r"process (\d+) works on task", said)]


def children(process: int) -> list[int]:
    """Return the ids of the processes that a process has started and that still run (Linux)."""
    listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(word) for word in listed.split()]


def gone(process: int, seconds: float) -> bool:
    """Wait until a process has ended; a zombie has, too."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False
