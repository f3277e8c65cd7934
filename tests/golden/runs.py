"""Computes the golden figures of whole runs: three rounds on synthetic scenes, in this process, on a CPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.settings.load import load_config
from common.settings.schema import RunConfig
from server.loop.run import run
from server.run_dir import read_metrics
from tests.golden.figures import Golden, Tolerance
from tests.support.federation import local_grid
from tests.support.scenes import write_synthetic
from tests.support.small_network import small_network

SITES = 4

TOLERANCE = Tolerance(relative=3e-4, absolute=1e-4)
"""The floor is for classes of few pixels, whose IoU a single pixel may move by that much."""

NETWORK_TOLERANCE = Tolerance(relative=1e-3, absolute=3e-4)
"""Whole networks feel last bits: where one turns a ReLU on or off, the gradient jumps, and some pixels follow."""

BLOCKS = [[1, 16, 1, 2], [6, 32, 1, 2]]
"""Two inverted residuals: every further batch norm of a random network makes ten times more of last bits."""

SHARED: dict[str, Any] = {
    "rounds": 3,
    "sites.expected": SITES,
    "simulation.shards": "shards",  # relative, for settings travel and their length counts as bytes
    "eval.shard": "eval.jsonl",
    "sites.wait-seconds": 1,
    "sites.deadline-seconds": 60,
}

CLUSTERED: dict[str, Any] = {
    "model.weights": "random",
    "model.stages": "0,1,3,6,13",  # early stages of a random network still tell colours and textures apart
    "model.normalize": "image",
    "model.clusters": 8,
}

NETWORK: dict[str, Any] = {
    "network.weights": "random",
    "transforms.height": 64,
    "transforms.width": 64,
    "local.batch": 4,
}

SETTINGS: dict[str, dict[str, Any]] = {
    # float16 rounds last bits up to a thousandth, and exact k-means carries that to its clusters' borders
    "default": CLUSTERED | {"model.height": 65, "model.width": 97, "model.dim": 16, "cache.dtype": "float32"},
    "label-free": CLUSTERED
    | {"model.pixels": 65 * 97, "model.dim": 16, "cache.dtype": "float32"}
    | {"codes.reach": 30.0, "centroids.over": 12, "centroids.starts": 2},
    # few and short steps: longer ones let nearly all patches fall into one cluster, whose IoU says nothing
    "fuss-ref": CLUSTERED
    | {"model.height": 64, "model.width": 64, "local.steps": 4, "local.batch": 4, "local.lr": 1e-4},
    # networks take few and short steps: the more they learn here, the more of last bits becomes of them
    "supervised": NETWORK | {"local.steps": 2, "sgd.lr": 0.02, "network.final-statistics": True},
    "adaptation": NETWORK
    | {
        "local.steps": 2,
        "sgd.lr": 0.01,
        "network.site-statistics": 0.98,
        "source.shard": "eval.jsonl",
        "source.steps": 3,
        "source.batch": 8,
        "source.lr": 0.01,
        "style.transfer": "fourier",
        "style.height": 64,
        "style.width": 64,
        "clusters.layers": "decoder",
        "clusters.exact": 2,
        "teacher.update": "mean",
        "teacher.distill-weight": 1.0,
    },
}
"""What the four runs set."""

PRESETS = ("default", "label-free", "fuss-ref")
"""The runs that name a preset; the others name a task."""

ROUND = ("loss", "mean_cosine", "displacement", "kept", "accuracy", "miou", "per_class_iou")
BYTES = ("bytes_up", "bytes_down")


def make_scenes(folder: Path) -> None:
    """Draw what the runs learn from and are scored on."""
    write_synthetic(folder / "shards", sites=SITES, images_per_site=10, eval_images=16, size=(72, 96), seed=0)


def config_of(name: str, **changes: Any) -> RunConfig:
    """Return the settings of one of `SETTINGS`; ``changes`` are further ones, with dots."""
    kind = "preset" if name in PRESETS else "task"
    return load_config(SHARED | {kind: name, "run-dir": f"run-{name}"} | SETTINGS[name] | changes)


def run_lines(folder: Path, config: RunConfig) -> list[dict[str, Any]]:
    """Return the lines of metrics of one run; ``folder``, the current directory, was filled by `make_scenes`."""
    with small_network(BLOCKS) if config.task != "unsupervised" else contextlib.nullcontext():
        done = run(local_grid(SITES), config)
    return read_metrics(folder / done)


def figures_of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a golden file pins of a run: losses, qualities and bytes, round by round."""
    figures: dict[str, Any] = {}
    for line in lines:
        found = {key: line[key] for key in ROUND if key in line}
        found |= {key: [line[key][site] for site in line["sites"]] for key in BYTES}
        figures[f"round-{line['round']}"] = found
    return figures


def tolerance_of(name: str) -> Tolerance:
    """Return how far the figures of one of `SETTINGS` may move."""
    return TOLERANCE if name in PRESETS else NETWORK_TOLERANCE


def golden_run(folder: Path, name: str) -> Golden:
    """Run one of `SETTINGS` in ``folder``, the current directory."""
    lines = run_lines(folder, config_of(name))
    hashes = {f"round-{line['round']}": line["checkpoint_sha256"] for line in lines}
    return Golden(f"run-{name}", figures_of(lines), tolerance_of(name), hashes)


@contextlib.contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """Work in a folder, with scenes, silently, for as long as the context lasts."""
    if not (folder / "shards").exists():
        make_scenes(folder)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.chdir(folder):
            yield folder
    finally:
        logging.disable(before)
