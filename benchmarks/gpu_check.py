"""Checks on a machine with a GPU what a CPU cannot show: features, caching, a federation, masks, training, memory.

    make gpu-check GPU_PYTHON=python3        # an interpreter that has the packages; nothing is installed
    python -m benchmarks.gpu_check [--device cuda:0] [--tiny]

Weights are random, of the real shapes; images are drawn; nothing outside the checkout is read. Each check prints a row
with its figure and its bar, and the exit status is 1 where one fails. It takes at most ten minutes. ``--device cpu
--tiny`` shows in a minute that the check itself works.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.checkpoint import load_checkpoint
from common.data.manifest import Entry, read_shard, write_manifest
from common.errors import UserError, report_user_errors
from common.features.cache import BackbonePass, open_features
from common.models.backbone import Backbone, load_backbone
from common.models.network import build_network
from common.settings.network import Network, Sgd
from common.settings.unsupervised import Cache, Model
from common.system.device import choose_device
from common.training.steps import Stepper
from server.tasks.base import task_of

ROOT = Path(__file__).resolve().parents[1]
# Features of CUDA beside the CPU's, relative norm of the difference: convolutions use TF32, and float16 on request.
CLOSE, CLOSE_HALF = 5e-3, 1e-2
# Caching beside the bare backbone, images a second.
RATE = 0.9
# Pixels of a mask on which both devices agree; features differ by CLOSE, so borders may move.
SAME_PIXELS = 0.98
# Losses of the small network after a few steps, relative; float16 on CUDA.
SAME_LOSS = 2e-2
STEPS = 4
LIMIT_SECONDS = 240


@dataclass(frozen=True)
class Size:
    """How large the check is: the backbone, the image [H, W], images of a cache, of a site, of a training batch."""

    backbone: str
    height: int
    width: int
    cached: int
    images: int
    batch: int
    dim: int


REAL = Size("vit_base_patch16_clip_quickgelu_224", 352, 480, 512, 48, 16, 256)
TINY = Size("test_vit", 64, 96, 16, 6, 2, 16)


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, in words, and whether it is as it should be."""

    name: str
    found: str
    bar: str
    passed: bool

    def __str__(self) -> str:
        return f"{'ok  ' if self.passed else 'FAIL'}  {self.name:34}  {self.found:34}  {self.bar}"


def model_of(size: Size) -> Model:
    """Return the settings of the backbone."""
    return Model(backbone=size.backbone, weights="random", height=size.height, width=size.width, clusters=4)


def clock(device: torch.device) -> float:
    """Return seconds, after all that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def check_features(size: Size, device: torch.device, folder: Path) -> Iterator[Row]:
    """Compare features of the device with those of the CPU, in float32 and in float16."""
    images = torch.rand(2, 3, size.height, size.width, generator=torch.Generator().manual_seed(0))
    expected = load_backbone(model_of(size), 0, "cpu")(images)
    for half, bar in ((False, CLOSE), (True, CLOSE_HALF)):
        found = BackbonePass(load_backbone(model_of(size), 0, device), device, half)(images).cpu()
        apart = float((found - expected).norm() / expected.norm())
        kind = "float16" if half else "float32"
        yield Row(
            f"features, {kind}, beside the CPU's", f"{apart:.1e} apart", f"at most {bar:g}", apart < bar
        )


def check_caching(size: Size, device: torch.device, folder: Path) -> Iterator[Row]:
    """Compare caching with the backbone alone; of two shards the difference counts, as both load the backbone."""
    (folder / "images").mkdir()
    rng, seconds, counts = np.random.default_rng(0), [], (size.cached // 8, size.cached)
    for index in range(size.cached):
        coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size.width, size.height)).save(folder / f"images/{index}.jpg")
    model, cache = model_of(size), Cache(mixed_precision=True)
    for number, count in enumerate(counts):
        path = folder / f"site-{number}.jsonl"
        write_manifest(path, [Entry(f"images/{index}.jpg") for index in range(count)])
        started = clock(device)
        open_features(read_shard(path, folder), model, cache, folder / "cache", device)
        seconds.append(clock(device) - started)
    images = counts[1] - counts[0]
    bare = seconds_of_backbone(load_backbone(model, 0, device), images, size, device)
    taken = max(seconds[1] - seconds[0], 1e-9)
    found = f"{images / taken:.0f} images a second, {bare / taken:.2f} x"
    enough = bare / taken >= RATE or size is TINY  # small shapes measure files
    yield Row("caching, beside the bare backbone", found, f"at least {RATE:g} x", enough)


def seconds_of_backbone(backbone: Backbone, images: int, size: Size, device: torch.device) -> float:
    """Return the seconds of the backbone alone for as many images, in the batches of caching."""
    run = BackbonePass(backbone, device, device.type == "cuda")
    batch = torch.rand(run.batch, 3, size.height, size.width)
    run(batch)  # warm-up
    started = clock(device)
    for first in range(0, images, run.batch):
        run(batch[: min(run.batch, images - first)])
    return clock(device) - started


def command(*words: str) -> None:
    """Run a command of the project; `UserError` with its last words where it fails."""
    environment = dict(
        os.environ, PYTHONPATH=str(ROOT), FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0"
    )
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"`{' '.join(words[:2])}` failed: {(done.stderr or done.stdout).strip()[-600:]}")


def check_federation(size: Size, device: torch.device, folder: Path) -> Iterator[Row]:
    """Run `label-free` over two simulated sites, and compare its masks on both devices."""
    shards, run_dir = folder / "shards", folder / "run"
    command("partitions", "synthetic", "--sites", "2", "--images-per-site", str(size.images),
            "--eval-images", "8", "--out", str(shards))  # fmt: skip
    sharing = ["--gpus-per-site", "0.5"] if device.type == "cuda" else []
    started = time.perf_counter()
    settings = {
        "model.backbone": size.backbone, "model.weights": "random", "model.depth": 0, "model.clusters": 6,
        "model.height": size.height, "model.width": size.width, "model.dim": size.dim, "rounds": 6,
        "eval.shard": "eval.jsonl",
    }  # fmt: skip
    chosen = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command("server", "simulate", "--recipe", "label-free", "--shards", str(shards), "--run-dir", str(run_dir),
            *chosen, *sharing)  # fmt: skip
    yield Row("label-free over two sites", f"{time.perf_counter() - started:.0f} s", "finishes", True)
    saved = load_checkpoint(run_dir)
    image = np.asarray(
        Image.open(next(iter((shards / "data").rglob("*.jpg")), folder / "images/0.jpg")).convert("RGB")
    )
    task = task_of(saved.config)
    masks = [
        task.predictor(saved, str(run_dir), name, "auto", None).labels(image) for name in (str(device), "cpu")
    ]
    same = float((masks[0] == masks[1]).mean())
    yield Row(
        "masks, beside the CPU's",
        f"{same:.4f} of the pixels",
        f"at least {SAME_PIXELS:g}",
        same >= SAME_PIXELS,
    )
    predictor = task.predictor(saved, str(run_dir), str(device), "auto", None)
    predictor.labels(image)
    started = clock(device)
    for _ in range(5):
        predictor.labels(image)
    yield Row("masks", f"{5 / (clock(device) - started):.1f} images a second", "none", True)


def check_training(size: Size, device: torch.device, folder: Path) -> Iterator[Row]:
    """Take the same steps of the small network and of DeepLabV3 on both devices."""
    for architecture in ("small", "deeplab"):
        losses, rate = {}, 0.0
        for name in ("cpu", str(device)):
            where = torch.device(name)
            network = (
                build_network(6, Network(architecture=architecture, weights="random"), 0).to(where).train()
            )
            stepper = Stepper(network, Sgd(), first_step=0, total_steps=100, seed=0)
            generator = torch.Generator().manual_seed(0)
            images = torch.rand(size.batch, 3, size.height, size.width, generator=generator).to(where)
            labels = torch.randint(6, (size.batch, size.height, size.width), generator=generator).to(where)
            for step in range(STEPS):
                if step == 1:  # after the first, which warms up
                    started = clock(where)
                with stepper.autocast():
                    value = torch.nn.functional.cross_entropy(network(images), labels)
                losses[name] = stepper.step(value, images)
            rate = (STEPS - 1) * size.batch / (clock(where) - started)
        apart = abs(losses[str(device)] - losses["cpu"]) / losses["cpu"]
        found = f"{apart:.1e} apart, {rate:.0f} images a second"
        yield Row(
            f"{architecture}: loss after {STEPS} steps", found, f"at most {SAME_LOSS:g}", apart < SAME_LOSS
        )


def check_memory(size: Size, device: torch.device, folder: Path) -> Iterator[Row]:
    """Ask for more images at once than a small share of the GPU holds: the batch has to fall, and the features stay."""
    if device.type != "cuda":
        yield Row("out of memory", "no GPU", "batch falls", True)
        return
    backbone = load_backbone(model_of(size), 0, device)
    images = torch.rand(64, 3, size.height, size.width)
    whole = BackbonePass(backbone, device, True, batch=4)(images).cpu()
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_reserved(device) + 2e9) / torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0), device)
    try:
        narrow = BackbonePass(backbone, device, True, batch=64)
        apart = float((narrow(images).cpu() - whole).norm() / whole.norm())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    found = f"batch fell to {narrow.batch}, {apart:.1e} apart"
    yield Row("2 GB for 64 images at once", found, f"finishes, at most {CLOSE_HALF:g}", apart < CLOSE_HALF)


def check_tests(size: Size, device: torch.device, folder: Path) -> Iterator[Row]:
    """Run the tests that only a GPU can pass."""
    if device.type != "cuda":
        yield Row("tests marked gpu", "no GPU", "pass", True)
        return
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests"],
        cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
    )  # fmt: skip
    last = (done.stdout.strip().splitlines() or ["pytest is not installed"])[-1].strip("= ")
    yield Row("tests marked gpu", last[:34], "pass", done.returncode == 0)


Check = Callable[[Size, torch.device, Path], Iterator[Row]]
CHECKS: tuple[Check, ...] = (
    check_features, check_caching, check_training, check_memory, check_federation, check_tests,
)  # fmt: skip


def rows(size: Size, device: torch.device) -> Iterator[Row]:
    """Run all checks; one that breaks is a row that failed."""
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as temporary:
        for check in CHECKS:
            try:
                yield from check(size, device, Path(temporary))
            except Exception as error:  # the others are still worth their minutes
                text = " ".join(str(error).split())[-300:]
                yield Row(check.__name__.removeprefix("check_"), f"{type(error).__name__}: {text}", "", False)


@contextmanager
def no_threads_left() -> Iterator[None]:
    """Use half the cores: simulated sites take the others."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@report_user_errors
def main() -> None:
    """Print a row a check as it ends, and exit with 1 where one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes: is the check itself whole?")
    options = parser.parse_args()
    failed = 0
    with no_threads_left():
        device = choose_device(options.device)
        started = time.perf_counter()
        if device.type == "cuda":
            print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}", flush=True)
        for row in rows(TINY if options.tiny else REAL, device):
            print(row, flush=True)
            failed += not row.passed
        print(f"{failed} of the checks failed, {time.perf_counter() - started:.0f} s")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
