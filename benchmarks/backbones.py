"""Cost of backbones: parameters, operations and processor seconds an image, with random weights.

python -m benchmarks.backbones [NAME[:BLOCKS] ...] [--height 352] [--width 480]
"""

from __future__ import annotations

import argparse
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from common.models.backbone import load_backbone
from common.settings.unsupervised import Model

NAMES = (
    "mobilenet_v2",
    "efficientnet_lite0:3,4",
    "efficientnet_lite2:3,4",
    "resnet50:3",
    "convnext_tiny:2",
    "vit_small_patch16_224",
    "vit_small_patch8_224:11",
    "vit_base_patch16_224.dino:11",
    "vit_small_patch14_reg4_dinov2:10",
    "vit_base_patch14_reg4_dinov2:10",
    "vit_small_patch16_dinov3:10",
    "vit_base_patch16_clip_quickgelu_224:10",
    "eva02_small_patch14_224:10",
    "samvit_base_patch16:11",
)
REPEATS = 2


def measure(name: str, height: int, width: int) -> str:
    """Return a row: grid, channels, million parameters, GMAC and seconds an image, the best of some."""
    backbone, _, blocks = name.partition(":")
    unit = 14 if "patch14" in name else 16
    corner = backbone == "mobilenet_v2"
    size = {"height": height // unit * unit + corner, "width": width // unit * unit + corner}
    model = load_backbone(Model(backbone=backbone, weights="random", blocks=blocks, **size), 0, "cpu")
    image = torch.rand(1, 3, *model.size)
    with FlopCounterMode(display=False) as counter:
        model(image)
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        model(image)
        seconds.append(time.process_time() - start)
    parameters = sum(tensor.numel() for tensor in model.extractor.parameters()) / 1e6
    grid = f"{model.grid[0]} x {model.grid[1]}"
    operations = counter.get_total_flops() / 2e9
    return (
        f"| {name} | {grid} | {model.channels} | {parameters:.1f} | {operations:.1f} | {min(seconds):.2f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--height", type=int, default=352)
    parser.add_argument("--width", type=int, default=480)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| backbone:blocks | grid | channels | million parameters | GMAC | s an image |\n|---|---|---:|---:|---:|---:|"
    )
    for name in args.names:
        print(measure(name, args.height, args.width), flush=True)


if __name__ == "__main__":
    main()
