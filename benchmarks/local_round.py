"""What does a local round cost from the feature cache, and what with the backbone in every step?

    python benchmarks/local_round.py [--steps 2] [--images 16]

Both ways train the same head on the same synthetic pictures with the same draws, one after the other on
this machine, each in a process of its own, so that peak memory is that way's own. Backbones have random
weights: speed does not depend on them. A round is ``--steps`` optimiser steps and the closing pass that
counts patches per cluster; "s/step" is the whole round divided by its steps. Preparing the round (making
the cache; pooling features for the nearest neighbours) is not part of it: the first is a column of its
own. Before the clock starts, one step on dummy features warms torch up.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # so that the script runs without an installation

from common.errors import report_user_errors

BACKBONES = ("vit_small_patch16_224", "vit_small_patch8_224")
COLUMNS = (
    ("backbone", "{backbone}"),
    ("caching, once (s)", "{caching_s:.1f}"),
    ("cache (MB)", "{disk_mb:.0f}"),
    ("cached (s/step)", "{cached_s:.3f}"),
    ("backbone in every step (s/step)", "{uncached_s:.3f}"),
    ("ratio", "{ratio:.0f}"),
    ("peak MB: caching", "{caching_mb}"),
    ("cached", "{cached_mb}"),
    ("every step", "{uncached_mb}"),
    ("difference of loss", "{loss_difference:.1e}"),
)


def write_pictures(folder: Path, count: int, side: int) -> Path:
    """Write smooth random pictures and their manifest; return the manifest."""
    import numpy as np
    from PIL import Image

    from common.data.manifest import Entry, write_manifest

    random = np.random.default_rng(0)
    names = [f"{index}.png" for index in range(count)]
    for name in names:
        coarse = random.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side)).save(folder / name)
    write_manifest(folder / "site-0.jsonl", [Entry(name) for name in names])
    return folder / "site-0.jsonl"


def measure(how: str, backbone: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Prepare and run one local round in this process; return seconds, loss and peak memory."""
    import numpy as np
    import torch

    from client.work.trainer import train_local
    from common.data.manifest import read_shard
    from common.features.cache import open_features
    from common.features.source import Features
    from common.models.head import build_head, init_centroids, state_to_numpy
    from common.settings.load import load_config
    from tests.support.uncached import UncachedFeatures

    if options.threads:
        torch.set_num_threads(options.threads)
    config = load_config(
        {
            "preset": "fuss-ref",  # the published objective: gradient steps, a two-layer head
            "model.backbone": backbone,
            "model.weights": "random",
            "model.height": options.side,
            "model.width": options.side,
            "cache.dtype": options.dtype,
            "local.steps": options.steps,
            "local.batch": options.batch,
            "local.neighbours": min(7, options.images - 1),
        }
    )
    one_step = config.model_copy(update={"local": config.local.model_copy(update={"steps": 1})})
    shard = read_shard(folder / "site-0.jsonl")
    started = time.perf_counter()
    features: Features
    if how == "uncached":
        features = UncachedFeatures(shard, config.model, options.device, config.seed)
        features.neighbours(1)  # pools the features of all images, once, as the published method does
    else:
        features = open_features(
            shard, config.model, config.cache, folder / "cache", options.device, config.seed
        )
    result: dict[str, Any] = {"prepare_s": time.perf_counter() - started}
    if how != "caching":
        head = state_to_numpy(build_head(features.channels, config.model, config.seed))
        centroids = np.asarray(init_centroids(config.model.clusters, config.model.dim, config.seed))
        # torch imports parts of itself at the first optimiser step, and CUDA loads what it runs for the first time;
        # neither way shall pay for that alone
        shape = (2, features.grid[0] * features.grid[1], features.channels)
        warm_up = Features.from_arrays(np.ones(shape, dtype=np.float32), features.grid)
        warm_up.device = features.device
        train_local(warm_up, head, centroids, one_step, 1, "warm-up")
        started = time.perf_counter()
        trained = train_local(features, head, centroids, config, 1, "site-0")
        result["step_s"] = (time.perf_counter() - started) / options.steps
        result["loss"] = trained.metrics["loss"]
    result["peak"] = peak_memory()
    result["imported"] = [name for name in ("timm", "torchvision") if name in sys.modules]
    return result


def peak_memory() -> str:
    """Return this process's peak resident memory in MB, and that of its GPU where it used one."""
    import resource

    import torch

    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    high = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]  # kB, of this program alone
    kilobytes = high[0] if high else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return f"{kilobytes / 1e3:.0f}" + (f" + {gpu / 1e6:.0f} GPU" if gpu else "")


def in_child(how: str, backbone: str, folder: Path) -> dict[str, Any]:
    """Run `measure` in a fresh process with this process's options."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", how, backbone, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare(backbone: str, folder: Path) -> dict[str, Any]:
    """Measure one backbone all three ways; return a row of the table."""
    caching, cached, uncached = (in_child(how, backbone, folder) for how in ("caching", "cached", "uncached"))
    if cached["imported"]:
        raise RuntimeError(f"training from the cache imported {cached['imported']}")
    files = [path for path in (folder / "cache").rglob("*.bin") if path.parent.parent == folder / "cache"]
    newest = max(files, key=lambda path: path.stat().st_mtime_ns).parent
    return {
        "backbone": backbone,
        "caching_s": caching["prepare_s"],
        "disk_mb": sum(path.stat().st_size for path in newest.iterdir()) / 1e6,
        "cached_s": cached["step_s"],
        "uncached_s": uncached["step_s"],
        "ratio": uncached["step_s"] / cached["step_s"],
        "caching_mb": caching["peak"],
        "cached_mb": cached["peak"],
        "uncached_mb": uncached["peak"],
        "loss_difference": abs(cached["loss"] - uncached["loss"]),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows as one Markdown table."""
    print("| " + " | ".join(title for title, _ in COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(form.format(**row) for _, form in COLUMNS) + " |")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=12, help="optimiser steps of the round (default 12)")
    parser.add_argument("--images", type=int, default=32, help="pictures of the site (default 32)")
    parser.add_argument("--batch", type=int, default=8, help="images per step (default 8)")
    parser.add_argument("--side", type=int, default=224, help="pixels of a picture's side (default 224)")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), help="timm names")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the cache")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: torch's own choice)")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.images < 2 or options.batch < 1:
        parser.error("--steps and --batch have to be at least 1, --images at least 2")
    return options


@report_user_errors
def main() -> None:
    """Measure and print the table."""
    options = parse()
    if options.child:
        how, backbone, folder = options.child
        print(json.dumps(measure(how, backbone, Path(folder), options)))
        return
    from common.system.device import choose_device

    choose_device(options.device)  # one that is not there is refused once, not by a child
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder, options.images, options.side)
        rows = []
        for number, backbone in enumerate(options.backbones, start=1):
            print(
                f"measuring {backbone} ({number} of {len(options.backbones)}) ...",
                file=sys.stderr,
                flush=True,
            )
            rows.append(compare(backbone, folder))
    threads = options.threads or os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
    print_table(rows)
    print(
        f"\n{options.images} pictures of {options.side} x {options.side}, batch {options.batch}, {options.steps} "
        f"steps, {options.dtype} cache, device {options.device}, {threads} threads"
    )


if __name__ == "__main__":
    main()
