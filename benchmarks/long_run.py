"""Does the server stay the same size over hundreds of rounds, with sites that die, come back and are slow?

    python benchmarks/long_run.py [--rounds 200] [--sites 8] [--per-round 0]
    python benchmarks/long_run.py --rounds 100 --sites 1000 --per-round 20
    python benchmarks/long_run.py --deployment [--rounds 30] [--sites 3]

Prints one table: memory of the server's process, its Python objects, the log with its older parts, metrics,
checkpoints. The server is this process. Sites are the project's own ClientApp on tiny drawn pictures, in
worker processes of their own, so that their memory does not count. Of what they are asked, a share is lost:
`Churn` draws deaths and slow answers from the seed. A slow answer is Flower's message that the deadline has
passed, which nobody waits for here. With `--deployment` all processes are real, and it is the SuperLink that is
measured (`benchmarks/deployed_run.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from common.seeds import numpy_generator
from common.settings.load import load_config
from common.settings.schema import RunConfig
from server.transport.retrying_link import EXPIRED
from tests.support.federation import TINY
from tests.support.local_grid import LocalGrid, set_identity

GONE = 5
"""Flower's error code for a node that went away."""
SAMPLES = (0.1, 0.25, 0.5, 0.75, 1.0)
COLUMNS = ("rounds", "resident MB", "objects MB", "log kB", "metrics kB", "checkpoints")


@dataclass(frozen=True)
class Churn:
    """How likely a site dies in a round, for how many rounds it is away at most, how likely it is too slow."""

    seed: int = 0
    dies: float = 0.05
    longest: int = 5
    slow: float = 0.1

    def fate(self, site: str, number: int) -> tuple[str, int]:
        """Return ``dies``, ``slow`` or ``answers`` for a site in a round, and how long it is away."""
        random = numpy_generator(self.seed, "fate", site, number)
        drawn, away = random.random(), int(random.integers(1, self.longest + 1))
        if drawn < self.dies:
            return "dies", away
        return ("slow" if drawn < self.dies + self.slow else "answers"), 0


class ChurningGrid(LocalGrid):
    """Sites that come and go, each time as another node; ``begin`` hears the number of every round that starts."""

    def __init__(
        self,
        client_app: ClientApp,
        sites: dict[str, dict[str, Any]],
        churn: Churn,
        begin: Callable[[int], None],
        pool: ProcessPoolExecutor | None = None,
    ) -> None:
        super().__init__(client_app, {100 + index: config for index, config in enumerate(sites.values())})
        self.churn = churn
        self.begin = begin
        self.pool = pool
        self.round = 0
        self.lost = {"dies": 0, "slow": 0}
        self._names = dict(zip(self.node_configs, sites, strict=True))
        self._away: dict[int, list[dict[str, Any]]] = {}
        self._working: dict[str, Future[Message]] = {}
        self._next_node = 100 + len(sites)

    def get_node_ids(self) -> list[int]:
        """Return who is there; those whose time has come are back first."""
        for number in [number for number in self._away if number <= self.round + 1]:
            for config in self._away.pop(number):
                self.node_configs[self._next_node] = config
                self._names[self._next_node] = str(config["name"])
                self._next_node += 1
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Draw what becomes of each message."""
        sent = list(messages)
        number = int(sent[0].metadata.group_id) if sent else 0
        if number > self.round:
            self.round = number
            self.begin(number)
        ids = super().push_messages(sent)
        self.sent.clear()  # that list is for tests of a few rounds
        return ids

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        name, number = self._names[node], int(message.metadata.group_id)
        fate, away = ("answers", 0)
        if message.metadata.message_type == "train":
            fate, away = self.churn.fate(name, number)
        if fate == "dies":
            self.lost["dies"] += 1
            self._away.setdefault(number + away, []).append(self.node_configs.pop(node))
            del self._names[node]
            return Message(Error(GONE), reply_to=message)
        if fate == "slow":
            self.lost["slow"] += 1
            return Message(Error(EXPIRED), reply_to=message)
        if self.pool is None:
            return super()._answer(message)
        future = self.pool.submit(answer_apart, message, self.node_configs[node])
        self._working[message.metadata.message_id] = future
        return Message(Error(0), reply_to=message)  # never seen: the future's result takes its place

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return what is done."""
        wanted = list(message_ids)
        for identity in wanted:
            if identity in self._working:
                self._replies[identity] = self._working.pop(identity).result()
        return super().pull_messages(wanted)


def answer_apart(message: Message, node_config: dict[str, Any]) -> Message:
    """Be a site, in a worker process."""
    import torch

    from client.app import app

    torch.set_num_threads(1)
    set_identity()
    node = message.metadata.dst_node_id
    return app(message, Context(42, node, node_config, RecordDict(), {}))


@dataclass
class Samples:
    """What is measured at some rounds."""

    run_dir: Path
    at: set[int]
    rows: list[tuple[float, ...]] = field(default_factory=list)

    def __call__(self, number: int) -> None:
        """Measure when ``number`` - 1 rounds are done, if that is a moment to measure."""
        if number - 1 in self.at:
            self.take(number - 1)

    def take(self, done: int) -> None:
        """Measure now."""
        gc.collect()
        logs = sum(path.stat().st_size for path in self.run_dir.glob("log.txt*"))
        lines = (self.run_dir / "metrics.jsonl").stat().st_size
        kept = len(list((self.run_dir / "checkpoints").glob("*.json")))
        objects = tracemalloc.get_traced_memory()[0] / 1e6
        self.rows.append((done, resident_mb(), objects, logs / 1e3, lines / 1e3, kept))


def resident_mb() -> float:
    """Return the memory of this process in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def settings(shards: Path, run_dir: Path, options: argparse.Namespace) -> RunConfig:
    """Return the settings of the run."""
    return load_config(
        TINY,
        {
            "preset": options.preset,
            "rounds": options.rounds,
            "local.batch": 2,
            "local.neighbours": 1,
            "eval.shard": "",
            "checkpoint.keep": options.keep,
            "sites.expected": options.sites,
            "sites.per-round": options.per_round,
            "sites.minimum": 1,
            "sites.deadline-seconds": 3600,
            "simulation.shards": str(shards),
            "run-dir": str(run_dir),
        },
    )


def main(given: Sequence[str] | None = None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--deployment", action="store_true", help="real processes; 30 rounds of 3 sites")
    parser.add_argument("--rounds", type=int, help="(default 200)")
    parser.add_argument("--sites", type=int, help="(default 8)")
    parser.add_argument("--per-round", type=int, default=0, help="0: all")
    parser.add_argument("--images", type=int, default=3, help="of a site")
    parser.add_argument("--keep", type=int, default=3, help="checkpoints (checkpoint.keep)")
    parser.add_argument("--preset", default="fuss-clean")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(given)
    options.rounds = options.rounds or (30 if options.deployment else 200)
    options.sites = options.sites or (3 if options.deployment else 8)
    if options.deployment:
        if options.per_round:
            parser.error("--per-round goes with the simulated grid only; leave it out beside --deployment")
        from benchmarks.deployed_run import measure

        measure(options)
        return

    from client.app import app
    from server.loop.run import run
    from tests.support.scenes import write_synthetic

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = write_synthetic(folder / "shards", options.sites, options.images, 0, (48, 64), options.seed)
        run_dir = folder / "run"
        config = settings(shards, run_dir, options)
        sites = {
            f"site-{index}": {"partition-id": index, "name": f"site-{index}"}
            for index in range(options.sites)
        }
        samples = Samples(run_dir, {max(1, round(options.rounds * part)) for part in SAMPLES})
        tracemalloc.start()
        with (
            ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool,
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),  # a line a round
        ):
            grid = ChurningGrid(app, sites, Churn(options.seed), samples, pool)
            run(grid, config)
        samples.take(options.rounds)
        print(
            f"{options.sites} sites, {options.per_round or options.sites} a round, {options.rounds} rounds,"
        )
        print(
            f"{grid.lost['dies']} deaths, {grid.lost['slow']} slow answers, {time.monotonic() - began:.0f} s\n"
        )
        print("| " + " | ".join(COLUMNS) + " |")
        print("|" + "---:|" * len(COLUMNS))
        for done, resident, objects, logs, lines, kept in samples.rows:
            print(f"| {done} | {resident:.0f} | {objects:.1f} | {logs:.0f} | {lines:.0f} | {kept} |")


if __name__ == "__main__":
    main()
