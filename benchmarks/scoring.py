"""How much longer does it take to score images than to send them through the network?

    python benchmarks/scoring.py --shard shards/camvid/val.jsonl [--images 100] [--architecture small]

Compared in turns, image by image, with the same network and the same threads: the bare forward pass on decoded images,
and a whole evaluation (decoding image and label, forward pass, one confusion an image for the sum, its domain and its
site). Printed are ratios, of wall time and of processor time; the bar is 1.2.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from common.data.images import entry_image
from common.data.manifest import Shard, read_shard
from common.data.transforms import image_tensor
from common.evaluation.networks import evaluate_network
from common.models.network import SegmentationNetwork, build_network
from common.settings.network import Network, Transforms


def clocks() -> tuple[float, float]:
    """Return wall time and processor time in seconds."""
    return time.perf_counter(), time.process_time()


@torch.no_grad()
def forward(network: SegmentationNetwork, images: list[torch.Tensor]) -> None:
    """Send images uint8 [3, H, W] through the network, one by one."""
    for image in images:
        network(image[None].float() / 255)


def ratios(network: SegmentationNetwork, shard: Shard, images: list[torch.Tensor]) -> tuple[float, float]:
    """Return wall and processor time of an evaluation over those of the forward pass."""
    assert shard.classes is not None
    before = clocks()
    forward(network, images)
    between = clocks()
    evaluate_network(lambda _: network, shard, shard.classes, Transforms())
    after = clocks()
    wall, processor = ((c - b) / (b - a) for a, b, c in zip(before, between, after, strict=True))
    return wall, processor


def main() -> None:
    """Measure in turns and print medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shard", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--architecture", default="small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shard = read_shard(given.shard)
    entries = tuple(replace(entry, site="site-0") for entry in shard.entries[: given.images])
    shard = replace(shard, entries=entries)
    assert shard.classes is not None
    settings = Network(architecture=given.architecture, weights="random")
    network = build_network(shard.classes.num_classes, settings, 0).eval()
    images = [image_tensor(entry_image(shard, index)) for index in range(len(shard))]
    forward(network, images[:4])
    found = [ratios(network, shard, images) for _ in range(given.repeat)]
    wall, processor = (statistics.median(values) for values in zip(*found, strict=True))
    print(
        f"{given.architecture}, {len(shard)} images: wall time {wall:.2f}x, processor time {processor:.2f}x the pass"
    )


if __name__ == "__main__":
    main()
