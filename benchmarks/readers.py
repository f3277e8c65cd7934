"""How much faster do two readers make batches than one, of images in the form of GTA5, and where does that pay?

    python benchmarks/readers.py

Prints ratios: readers are compared with one on the same machine, in turns. With a second core free, 1.7 is the bar; on
a machine without a GPU the network's own threads want that core.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.data.classes import load_table
from common.data.data_loader import ImageDataset
from common.data.manifest import Entry, Shard
from common.settings.network import Transforms


def draw(folder: Path, images: int, size: tuple[int, int]) -> Shard:
    """Write images of smooth colors with a little noise, which PNG packs about as well as a game's."""
    rng = np.random.default_rng(0)
    entries = []
    for index in range(images):
        coarse = rng.integers(0, 256, (size[0] // 16 + 1, size[1] // 16 + 1, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC))
        noisy = (smooth.astype(np.int16) + rng.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index}.png")
        ids = rng.integers(0, 19, (size[0] // 64 + 1, size[1] // 64 + 1), dtype=np.uint8)
        label = Image.fromarray(ids).resize((size[1], size[0]), Image.Resampling.NEAREST)
        label.save(folder / f"{index}-label.png")
        entries.append(Entry(f"{index}.png", f"{index}-label.png"))
    return Shard("gta5", folder / "gta5.jsonl", folder, tuple(entries), load_table("cityscapes-19"))


def seconds(shard: Shard, readers: int, steps: int, batch: int) -> float:
    """Return the time of so many batches, nothing of which is kept in memory."""
    transforms = Transforms(
        crop="random", height=512, width=928, scale_min=0.8, scale_max=1.5, flip=0.5, jitter=0.3
    )
    source = ImageDataset(shard, transforms, (0, "site"), True, shard.classes, workers=readers, memory=0)
    batches = source.batches(steps, batch)
    next(batches)  # readers have started
    began = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - began


def main() -> None:
    """Measure in turns and print medians."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--images", type=int, default=24)
    arguments.add_argument("--repeat", type=int, default=3)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shard = draw(Path(folder), given.images, (1052, 1914))
        ratios = []
        for _ in range(given.repeat):
            one, two = (seconds(shard, readers, 6, 4) for readers in (1, 2))
            ratios.append(one / two)
            print(f"one reader {one:.2f} s, two {two:.2f} s: {one / two:.2f}x")
    print(f"median of two readers over one: {statistics.median(ratios):.2f}x")


if __name__ == "__main__":
    main()
