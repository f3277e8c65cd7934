"""How long is a round beside its local training, over warm sites and over Flower's defaults?

Prints one table. Three sites on loopback, real processes. The reference is an empty Flower application whose
client imports torch and answers at once, with everything as Flower sets it: seconds of one
``send_and_receive``. Against it stand whole rounds of this project (one message phase; merging, checkpoint
and two steps of training on tiny pictures included, nothing is subtracted) with sites started by
``python -m client serve``, and, on demand, by ``flower-supernode``.

    python benchmarks/message_phase.py [--phases 5] [--rounds 8] [--plain]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.deployment import Deployment
from tests.support.federation import TINY
from tests.support.scenes import write_synthetic
from tests.support.warm import start_warm_site

SITES = 3
PATIENCE_SECONDS = 1800.0

PYPROJECT = """\
[project]
name = "reference"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "benchmark"
fab-include = ["reference/*.py"]

[tool.flwr.app.components]
serverapp = "reference.server:app"
clientapp = "reference.client:app"

[tool.flwr.app.config]
out = ""
phases = 1
sites = 1
"""

CLIENT = """\
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    return Message(RecordDict({"answer": ConfigRecord({"version": torch.__version__})}), reply_to=message)
"""

SERVER = """\
import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    settings = context.run_config
    while len(nodes := sorted(grid.get_node_ids())) < settings["sites"]:
        time.sleep(0.5)
    seconds = []
    for phase in range(settings["phases"]):
        content = [RecordDict({"question": ConfigRecord({"phase": phase})}) for _ in nodes]
        sent = [Message(c, dst_node_id=n, message_type="train") for c, n in zip(content, nodes)]
        began = time.monotonic()
        replies = list(grid.send_and_receive(sent))
        seconds.append(time.monotonic() - began)
        assert len(replies) == len(nodes) and not any(reply.has_error() for reply in replies)
    Path(settings["out"]).write_text(json.dumps(seconds))
"""


def words(settings: dict[str, object]) -> str:
    """Write settings as Flower's ``--run-config``."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())


def run(net: Deployment, settings: dict[str, object]) -> None:
    """Submit the deployment's application and wait for its end."""
    found = net.wait(net.submit(words(settings)), PATIENCE_SECONDS)
    if found["status"] != "finished:completed":
        raise RuntimeError(f"{found}\n{net.everything()}")


def reference_seconds(folder: Path, phases: int) -> list[float]:
    """Return the seconds of each message phase of the empty application; the first finds cold files."""
    app = folder / "app"
    (app / "reference").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PYPROJECT)
    for name, text in (("__init__", ""), ("client", CLIENT), ("server", SERVER)):
        (app / "reference" / f"{name}.py").write_text(text)
    out = folder / "seconds.json"
    with Deployment(folder / "net", project=app) as net:
        net.superlink()
        for index in range(SITES):
            net.supernode(f"site-{index}", f"partition-id={index}")
        run(net, {"out": str(out), "phases": phases + 1, "sites": SITES})
    seconds: list[float] = json.loads(out.read_text())
    return seconds[1:]


def round_seconds(folder: Path, scenes: Path, rounds: int, warm: bool) -> list[float]:
    """Return the seconds of rounds of this project; the first and the last do more and are left out."""
    run_dir = folder / "run"
    settings = TINY | {
        "preset": "fuss-clean",
        "rounds": rounds + 2,
        "eval.every": 0,
        "simulation.shards": str(scenes),
        "run-dir": str(run_dir),
        "sites.expected": SITES,
        "sites.minimum": SITES,
        "sites.wait-seconds": 180,
        "sites.deadline-seconds": 300,
    }
    with Deployment(folder / "net") as net:
        net.superlink()
        for index in range(SITES):
            name, shard, cache = f"site-{index}", scenes / f"site-{index}.jsonl", folder / f"cache-{index}"
            if warm:
                start_warm_site(net, name, name, shard, cache)
            else:
                net.supernode(name, f'site="{name}" shard="{shard}" cache="{cache}" threads=1')
        run(net, settings)
    lines = [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all(len(line["sites"]) == SITES for line in lines)
    return [line["seconds"] for line in lines[1:-1]]


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phases", type=int, default=5, help="of the reference (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="of this project (default: %(default)s)")
    parser.add_argument("--plain", action="store_true", help="this project by flower-supernode as well")
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory(prefix="message-phase-") as name:
        folder = Path(name)
        scenes = folder / "scenes"
        write_synthetic(scenes, sites=SITES, images_per_site=10, eval_images=6, size=(72, 96), seed=0)
        measured = {"empty application, Flower's defaults": reference_seconds(folder / "r", arguments.phases)}
        if arguments.plain:
            measured["a round, flower-supernode"] = round_seconds(
                folder / "p", scenes, arguments.rounds, False
            )
        measured["a round, python -m client serve"] = round_seconds(
            folder / "w", scenes, arguments.rounds, True
        )
    reference = statistics.median(next(iter(measured.values())))
    print(f"{'three sites on loopback':<38} {'median s':>9} {'range s':>13} {'ratio':>6}")
    for what, seconds in measured.items():
        middle = statistics.median(seconds)
        span = f"{min(seconds):.1f} - {max(seconds):.1f}"
        print(f"{what:<38} {middle:>9.2f} {span:>13} {middle / reference:>6.2f}")


if __name__ == "__main__":
    main()
