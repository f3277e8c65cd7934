"""What do two hostile sites of nine do to a federation, and which merge rules stop them?

    python -m partitions camvid --root ../shared/data/camvid --by domain --out shards/camvid
    python benchmarks/hostile.py --seeds 1

Real training on CamVid by a recipe of gradient steps, over the in-process grid of the tests. The hostile sites
train like the others, so that nothing but their replies differs: the head is multiplied by a factor (a negative
one flips its sign), centroids and sums are random, and both come with the counts of a much larger site. Finished
runs are kept: the command can be stopped and started again. One table goes to the terminal and to OUT/table.md.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import io
import json
import multiprocessing
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from campaign import ROOT, absolute, check, finished, recipe_path, set_aside

from common import wire
from common.errors import UserError, report_user_errors
from common.seeds import numpy_generator
from common.settings.load import load_config, read_recipe
from common.settings.schema import RunConfig
from common.system.atomic import atomic_write_text

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict

    Answer = Callable[[Message], Message]
    Fault = Callable[[Message, Answer], Message]

HOSTILE = ("site-3", "site-7")

RULES: dict[str, dict[str, Any]] = {
    "mean + mean": {"aggregation.rule": "mean", "centroids.merge": "mean"},
    "mean + matched": {"aggregation.rule": "mean", "centroids.merge": "matched"},
    "mean + FedCC maximin, as published": {"aggregation.rule": "mean"},
    "trimmed mean 0.25 + matched median": {
        "aggregation.rule": "trimmed-mean",
        "aggregation.trim": 0.25,
        "centroids.merge": "matched-median",
    },
    "median + matched geometric median": {
        "aggregation.rule": "median",
        "centroids.merge": "matched-geometric",
    },
    "multi-Krum 2 + matched median": {
        "aggregation.rule": "multi-krum",
        "aggregation.malicious": 2,
        "centroids.merge": "matched-median",
    },
}
"""Settings on top of the recipe: how heads are merged, and how centroids."""


@dataclass(frozen=True)
class Attack:
    """What the hostile sites send: ``factor`` times the head they trained, centroids of length ``spread``.

    They claim ``claim`` times the patches of their fullest cluster for each of them.
    """

    factor: float
    spread: float = 100.0
    claim: int = 1000

    def __call__(self, update: wire.Update, generator: np.random.Generator) -> wire.Update:
        """Return the reply in the place of an honest one."""
        groups = dict(update.groups)
        if "head" in groups:
            groups["head"] = {
                name: (self.factor * value).astype(np.float32) for name, value in groups["head"].items()
            }
        if "centroids" in groups:
            sent = groups["centroids"]
            rubbish = self.spread * generator.standard_normal(sent["centroids"].shape)
            counts = np.full_like(sent["counts"], self.claim * sent["counts"].max())
            groups["centroids"] = {"centroids": rubbish.astype(np.float32), "counts": counts}
        if "sums" in groups:  # as long as the server lets sums of so many unit vectors be
            sent = groups["sums"]
            counts = np.full_like(sent["counts"], self.claim * sent["counts"].max())
            directions = generator.standard_normal(sent["sums"].shape)
            directions /= np.linalg.norm(directions, axis=1, keepdims=True)
            groups["sums"] = sent | {"sums": directions * counts[:, None], "counts": counts}
        return replace(update, groups=groups)


NOBODY = "nobody"

ATTACKS: dict[str, Attack | None] = {
    NOBODY: None,
    "head x 10": Attack(10.0),
    "head x -1": Attack(-1.0),
    "head x -5": Attack(-5.0),
}


def tamper(attack: Attack, site: str, seed: int, honest: Fault) -> Fault:
    """Return a fault for the grid: what the site would answer, replaced by what the attack makes of it."""

    def fault(message: Message, answer: Answer) -> Message:
        reply = honest(message, answer)
        update = wire.decode_update(reply.content, limit=1 << 31)
        generator = numpy_generator(seed, "attack", site, message.metadata.group_id)
        reply.content = wire.encode_update(attack(update, generator), "float32")
        return reply

    return fault


@dataclass(frozen=True)
class Task:
    """One run: what is trained, how it is merged, who attacks."""

    recipe: str
    rule: str
    attack: str
    seed: int
    shards: Path | None
    out: Path


def settings(task: Task, run_dir: Path) -> RunConfig:
    """Return the settings of one run, paths absolute, all sites expected."""
    from server import simulate

    here: dict[str, Any] = {"seed": task.seed, "run-dir": str(run_dir), "checkpoint.keep": 1}
    here |= {"simulation.shards": str(task.shards)} if task.shards else {}
    config = load_config(read_recipe(recipe_path(task.recipe)), RULES[task.rule], here)
    if config.local.keep_optimizer or config.local.moon_weight:
        raise UserError(f"Recipe {task.recipe} leaves a state on the sites; choose one that does not.")
    return simulate.with_all_sites(simulate.absolute(config))


class Memory:
    """Answers of the sites: one is asked only once for the same, since its answer follows from what it is sent.

    True for recipes that leave nothing on the sites between rounds. The first round is the same for all rules.
    """

    def __init__(self) -> None:
        self.answers: dict[str, RecordDict] = {}

    def __call__(self, message: Message, answer: Answer) -> Message:
        """Answer from memory, or by ``answer``."""
        from flwr.app import Message

        task, sent = wire.decode_task(message), hashlib.sha256()
        what = (
            message.metadata.dst_node_id,
            message.metadata.message_type,
            task.round,
            sorted(task.options.items()),
        )
        sent.update(repr(what).encode())
        for group, arrays in sorted(task.groups.items()):
            for name, array in sorted(arrays.items()):
                sent.update(f"{group}/{name}".encode() + np.ascontiguousarray(array).tobytes())
        key = sent.hexdigest()
        if key not in self.answers:
            self.answers[key] = answer(message).content
        return Message(self.answers[key], reply_to=message)


@functools.lru_cache(maxsize=1)
def memory_of(recipe: str, seed: int, shards: Path | None) -> Memory:
    """Return the memory of all runs in this process that differ in nothing but merging and attacks."""
    return Memory()


def run_one(config: RunConfig, attack: Attack | None, memory: Memory) -> None:
    """Run one federation in this process."""
    from client.app import app
    from server.loop.run import run
    from tests.support.local_grid import LocalGrid

    sites = config.sites.expected
    state = str(Path(config.run_dir) / "sites")  # other runs over the same shards keep theirs
    nodes = {
        2 + index: {"partition-id": index, "num-partitions": sites, "state": state} for index in range(sites)
    }
    grid = LocalGrid(app, nodes)
    for node, own in nodes.items():
        name = f"site-{own['partition-id']}"
        hostile = attack if name in HOSTILE else None
        grid.faults[node] = memory if hostile is None else tamper(hostile, name, config.seed, memory)
    run(grid, config)


def run_dir_of(task: Task) -> Path:
    """Return the folder of a run, named after all that it depends on."""
    attack = ATTACKS[task.attack]
    words = f"{task.recipe} {task.rule} {f'factor {attack.factor:g}' if attack else task.attack}".lower()
    name = "-".join("".join(c if c.isalnum() or c == "-" else " " for c in words).split())
    return task.out / f"{name}-seed{task.seed}"


def work(task: Task) -> tuple[Task, float]:
    """Make one run, unless it is there; returns its mIoU."""
    run_dir = run_dir_of(task)
    set_aside(run_dir, settings(task, run_dir))
    if not finished(run_dir):
        shutil.rmtree(run_dir, ignore_errors=True)  # of a run that was stopped
        with contextlib.redirect_stdout(io.StringIO()):  # the run's own log is log.txt
            memory = memory_of(task.recipe, task.seed, task.shards)
            run_one(settings(task, run_dir), ATTACKS[task.attack], memory)
    last = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return task, float(json.loads(last)["miou"])


def table(found: Mapping[Task, float], rules: Sequence[str], attacks: Sequence[str]) -> str:
    """Return mIoU in % by rule and attack, mean over the seeds, and each rule's loss under its worst attack."""
    lines = ["| heads + centroids | " + " | ".join([*attacks, "largest loss"]) + " |"]
    lines.append("|---|" + "---:|" * (len(attacks) + 1))
    for rule in rules:
        row = [
            100 * mean(value for task, value in found.items() if (task.rule, task.attack) == (rule, attack))
            for attack in attacks
        ]
        cells = [f"{value:.1f}" for value in [*row, row[0] - min(row)]]
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@report_user_errors
def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--recipe",
        default="camvid-rule-fedcc-maximin-polish",
        help="recipes/NAME.toml, one of gradient steps",
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES), metavar="RULE")
    parser.add_argument(
        "--attacks", nargs="+", choices=list(ATTACKS), default=list(ATTACKS), metavar="ATTACK"
    )
    parser.add_argument("--shards", type=absolute, help="shards folder, if not the recipe's own")
    parser.add_argument("--out", type=absolute, default=ROOT / "runs" / "hostile", help="where the runs go")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side (default 2)")
    asked = parser.parse_args()
    check([asked.recipe], asked.shards)
    attacks = list(dict.fromkeys([NOBODY, *asked.attacks]))  # the column that the others are compared to
    tasks = [
        Task(asked.recipe, rule, attack, seed, asked.shards, asked.out)
        for seed in range(asked.seeds)
        for attack in attacks
        for rule in asked.rules
    ]
    found: dict[Task, float] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.processes, context) as pool:
        for task, miou in pool.map(work, tasks):
            found[task] = miou
            print(f"{task.rule:<40} {task.attack:<12} seed {task.seed}  mIoU {100 * miou:.1f}", flush=True)
    text = table(found, asked.rules, attacks)
    asked.out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(asked.out / "table.md", text + "\n")
    print(f"\nmIoU in %, {asked.recipe}, {asked.seeds} seed(s), hostile: {', '.join(HOSTILE)}\n\n{text}")


if __name__ == "__main__":
    sys.exit(main())
