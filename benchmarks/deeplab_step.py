"""What does one of our training steps cost beside a plain torch loop, and how much memory does training take?

    python benchmarks/deeplab_step.py [--steps 5] [--height 256] [--width 464]
    python benchmarks/deeplab_step.py --memory

Both loops train the same weights on the same synthetic images and labels in memory, with the same optimiser
settings, and take turns step by step in one process, so that a busy machine slows both alike. "plain" is what one
would write by hand: torchvision's MobileNetV2 features and DeepLabHead, cross-entropy, torch.optim.SGD, on CUDA
with autocast and a gradient scaler. "ours" is `common.training.steps` on `common.models.networks.deeplab`, with its
schedule, its checks and its seeded dropout. Seconds are the median over ``--steps``; on the CPU they are those of
the processor, not of the clock, so that other processes do not count. Bar: a ratio of at least 1.

``--memory`` trains two steps of batch 4 at 512 x 928 at output strides 32 and 16, each in a process of its own, and
prints its peak resident memory. Bar: at most 8 GB. (``--strides 8`` works too; on one CPU core it takes minutes.)
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # so that the script runs without an installation

from common.errors import report_user_errors

if TYPE_CHECKING:
    import torch

    from common.data.data_loader import ImageBatch
    from common.models.networks.deeplab import DeepLab

CLASSES = 16
MEMORY_BATCH, MEMORY_HEIGHT, MEMORY_WIDTH = 4, 512, 928
BAR_GB = 8.0


def synthetic(batch: int, height: int, width: int, device: torch.device) -> ImageBatch:
    """Return one batch of random images and labels, a tenth of them ignored."""
    import torch

    from common.data.data_loader import ImageBatch

    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, height, width, generator=generator)
    labels = torch.randint(CLASSES, (batch, height, width), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return ImageBatch(images.to(device), labels.to(device), list(range(batch)))


def network(options: argparse.Namespace, device: torch.device) -> DeepLab:
    """Build our network with random weights: speed does not depend on them."""
    from common.models.network import build_network
    from common.settings.network import Network

    return build_network(CLASSES, Network(weights="random", output_stride=options.stride), 0).to(device)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean over pixels that are not ignored."""
    from torch.nn import functional as F

    return F.cross_entropy(logits, labels, ignore_index=255)


def our_step(options: argparse.Namespace, batch: ImageBatch, model: DeepLab) -> Callable[[], float]:
    """Return a function that takes one step of `common.training.steps`."""
    from common.settings.network import Sgd
    from common.training.steps import Stepper

    stepper = Stepper(model, Sgd(), first_step=0, total_steps=10_000, seed=0)

    def step() -> float:
        assert batch.labels is not None
        with stepper.autocast():
            logits = model(batch.images)
        return stepper.step(cross_entropy(logits, batch.labels), batch.images)

    return step


def plain_step(options: argparse.Namespace, batch: ImageBatch, model: DeepLab) -> Callable[[], float]:
    """Return a function that takes one step as written by hand, from the same weights."""
    import torch
    from torch import nn
    from torch.nn import functional as F
    from torchvision.models import mobilenet_v2
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead

    from common.models.networks.deeplab import dilate

    device = batch.images.device
    backbone, head = mobilenet_v2(weights=None).features, DeepLabHead(1280, CLASSES)
    dilate(backbone, options.stride)
    backbone.load_state_dict(model.backbone.state_dict())
    head.load_state_dict(model.head.state_dict())
    plain = nn.Sequential(backbone, head).to(device).train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    mixed = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=mixed)
    mean, std = (
        torch.tensor(v, device=device).view(1, 3, 1, 1)
        for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )

    def step() -> float:
        assert batch.labels is not None
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16, enabled=mixed):
            scores = plain((batch.images - mean) / std)
            logits = F.interpolate(scores, batch.images.shape[2:], mode="bilinear", align_corners=False)
            loss = cross_entropy(logits, batch.labels)
        scaled = scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return step


def compare(options: argparse.Namespace) -> None:
    """Let the two loops take turns; print seconds per step, images per second and the ratio."""
    import torch

    from common.system.device import choose_device

    device = choose_device(options.device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    model = network(options, device)
    batch = synthetic(options.batch, options.height, options.width, device)
    steps = {"plain": plain_step(options, batch, model), "ours": our_step(options, batch, model)}
    first = {name: step() for name, step in steps.items()}  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.steps):
        for name, step in steps.items():
            started = clock()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(clock() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print("| loop | s/step | images/s | loss of the first step |\n|---|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.3f} | {options.batch / median:.2f} | {first[name]:.4f} |")
    print(
        f"\nratio {medians['plain'] / medians['ours']:.2f} (throughput of ours in multiples of plain), batch "
        f"{options.batch} of {options.height} x {options.width}, output stride {options.stride}, {device}, "
        f"{torch.get_num_threads()} threads"
    )


def measure_memory(stride: int, device_name: str) -> dict[str, Any]:
    """Train two steps in this process; return its peak memory in GB, and the GPU's where there is one."""
    import torch

    from benchmarks.local_round import peak_memory
    from common.settings.network import Sgd
    from common.system.device import choose_device
    from common.training.steps import Stepper, train_steps

    device = choose_device(device_name)
    options = argparse.Namespace(stride=stride)
    batches: Iterator[ImageBatch] = repeat(synthetic(MEMORY_BATCH, MEMORY_HEIGHT, MEMORY_WIDTH, device))
    stepper = Stepper(network(options, device), Sgd(), first_step=0, total_steps=2, seed=0)
    train_steps(stepper, batches, cross_entropy, 2)
    resident, *_ = peak_memory().split()
    gpu = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return {"gb": float(resident) / 1e3, "gpu_gb": gpu / 1e9}


def memory(options: argparse.Namespace) -> None:
    """Print the peak memory of training at each output stride asked for."""
    print("| output stride | peak resident GB | GPU GB |\n|---|---|---|")
    worst = 0.0
    for stride in options.strides:
        command = [sys.executable, __file__, "--child", str(stride), "--device", options.device]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        worst = max(worst, row["gb"], row["gpu_gb"])
        print(f"| {stride} | {row['gb']:.2f} | {row['gpu_gb']:.2f} |", flush=True)
    verdict = "within" if worst <= BAR_GB else "above"
    print(f"\nbatch {MEMORY_BATCH} of {MEMORY_HEIGHT} x {MEMORY_WIDTH}, {verdict} the bar of {BAR_GB:g} GB")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each loop (default 5)")
    parser.add_argument("--batch", type=int, default=4, help="images per step (default 4)")
    parser.add_argument("--height", type=int, default=256, help="of the images (default 256)")
    parser.add_argument("--width", type=int, default=464, help="of the images (default 464)")
    parser.add_argument(
        "--stride", type=int, choices=(8, 16, 32), default=32, help="output stride (default 32)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    parser.add_argument(
        "--strides", type=int, nargs="+", default=[32, 16], help="with --memory (default 32 16)"
    )
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.batch < 1 or min(options.height, options.width) < 64:
        parser.error("--steps and --batch have to be at least 1, --height and --width at least 64")
    return options


@report_user_errors
def main() -> None:
    """Measure and print."""
    from common.system.device import choose_device

    options = parse()
    choose_device(options.device)  # one that is not there is refused before anything is built
    if options.child:
        print(json.dumps(measure_memory(options.child, options.device)))
    elif options.memory:
        memory(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
