"""Does a SuperLink stay the same size over the rounds, while one site does not fetch what it is sent?

`benchmarks/long_run.py --deployment` measures this: real processes on loopback, a SuperLink with a database, the server
application in a process of its own, warm sites. The last site is stopped (SIGSTOP) in all rounds but one of eight, so
that its messages expire in the SuperLink while it still counts as connected.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sqlite3
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.deployment import Deployment
from tests.support.federation import TINY
from tests.support.warm import start_warm_site

COLUMNS = (
    "rounds",
    "SuperLink MB",
    "database MB",
    "objects in it MB",
    "server application MB",
    "answers missing",
)
DEADLINE_SECONDS = 5.0
LIMIT_SECONDS = 300.0
RESPITE = 8
"""The stopped site goes on in one of so many rounds: one that is silent for a minute is not sent anything."""


@dataclass(frozen=True)
class Stopped:
    """A site that is stopped and let go on; its whole process group, as tasks are children of it."""

    process: int

    def begin(self, number: int) -> None:
        """Stop, or go on, for round ``number``."""
        os.killpg(self.process, signal.SIGCONT if number % RESPITE == 0 else signal.SIGSTOP)

    def release(self) -> None:
        """Go on, so that it can end."""
        os.killpg(self.process, signal.SIGCONT)


def run_settings(shards: Path, run_dir: Path, options: argparse.Namespace) -> str:
    """Return Flower's ``key=value`` words of the run."""
    given = TINY | {
        "preset": options.preset,
        "rounds": options.rounds,
        "local.batch": 2,
        "local.neighbours": 1,
        "eval.shard": "",
        "checkpoint.keep": options.keep,
        "sites.expected": options.sites,
        "sites.minimum": 1,
        "sites.deadline-seconds": DEADLINE_SECONDS,
        "simulation.shards": str(shards),
        "run-dir": str(run_dir),
    }
    return " ".join(f"{key}={json.dumps(value)}" for key, value in given.items())


def resident_mb(process: int) -> float:
    """Return the memory of a process in MB, without its children (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def tree_mb(process: int) -> float:
    """Return the memory of a process and all below it in MB; what they share counts for each."""
    below = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return resident_mb(process) + sum(tree_mb(int(child)) for child in below)


def database_mb(folder: Path) -> float:
    """Return the size of the SuperLink's database with its journal in MB."""
    return sum(path.stat().st_size for path in folder.glob("superlink.db*")) / 1e6


def objects_mb(folder: Path) -> float:
    """Return the size of what the database keeps of messages in MB; the file itself never shrinks."""
    with contextlib.closing(sqlite3.connect(f"file:{folder / 'superlink.db'}?mode=ro", uri=True)) as database:
        ((size,),) = database.execute("select coalesce(sum(length(content)), 0) from objects")
    return float(size) / 1e6


def lines_of(run_dir: Path) -> list[dict[str, object]]:
    """Return the finished rounds."""
    file = run_dir / "metrics.jsonl"
    whole = file.read_text(encoding="utf-8").rpartition("\n")[0] if file.is_file() else ""
    return [json.loads(line) for line in whole.splitlines()]


def measure(options: argparse.Namespace) -> None:
    """Run and print one row for every tenth part of the rounds."""
    from tests.support.scenes import write_synthetic

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, Deployment(Path(temporary) / "net") as net:
        folder = Path(temporary)
        shards = write_synthetic(folder / "shards", options.sites, options.images, 0, (48, 64), options.seed)
        run_dir = folder / "run"
        net.lasting_superlink()
        net.executor()
        for index in range(options.sites):
            shard = shards / f"site-{index}.jsonl"
            start_warm_site(net, f"site-{index}", f"site-{index}", shard, folder / "cache" / str(index))
        run_id = net.submit(run_settings(shards, run_dir, options))
        stopped = Stopped(net.processes[f"site-{options.sites - 1}"].pid)
        print("| " + " | ".join(COLUMNS) + " |\n" + "|" + "---:|" * len(COLUMNS))
        every, done = max(1, options.rounds // 10), 0
        try:
            while done < options.rounds and time.monotonic() - began < LIMIT_SECONDS:
                time.sleep(0.1)
                lines = lines_of(run_dir)
                if len(lines) == done:
                    continue
                done = len(lines)
                stopped.begin(done + 1)
                if done % every == 0 or done == 1:
                    missing = sum(options.sites - len(line["sites"]) for line in lines)  # type: ignore[arg-type]
                    sizes = (
                        resident_mb(net.processes["superlink"].pid),
                        database_mb(net.folder),
                        objects_mb(net.folder),
                        tree_mb(net.processes["superexec"].pid),
                    )
                    row = " | ".join(f"{size:.1f}" for size in sizes)
                    print(f"| {done} | {row} | {missing} |", flush=True)
        finally:
            stopped.release()
        verdict = net.wait(run_id, 60)["status"] if done == options.rounds else "cut off"
        print(
            f"\n{options.sites} sites, one of them mostly stopped, {done} of {options.rounds} rounds, run {verdict}, "
            f"{time.monotonic() - began:.0f} s; after the run {objects_mb(net.folder):.1f} MB of objects are left"
        )
        if not done:
            print(net.everything())
