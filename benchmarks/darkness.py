"""How far does darkness alone get at finding cracks? The baseline beside the CrackForest recipes.

    python -m partitions crackforest --root ../shared/data/crackforest --out shards/crackforest
    python benchmarks/darkness.py

A pixel counts as crack where it, lightly blurred, is darker than its surroundings by a margin. Three margins: the
best for the labels of the training photos, scored on the others; the best for the scored photos themselves,
which nothing of this kind can beat; and one found without labels, half-way between two means.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data.images import entry_image, entry_label
from common.data.manifest import Shard, pool_shards, read_shard, read_sites
from common.errors import UserError, report_user_errors
from common.evaluation.metrics import Confusion, scores

ROOT = Path(__file__).resolve().parents[1]
GREYS = 256
NEAR, FAR = 2, 20
"""Pixels that a Gaussian takes together as the place itself, and as its surroundings."""

Counts = npt.NDArray[np.int64]


def darkness(shard: Shard, index: int) -> npt.NDArray[np.int64]:
    """Return by how many grey values each pixel is darker than its surroundings, 0 for lighter ones: [H, W]."""
    grey = Image.fromarray(entry_image(shard, index)).convert("L")
    near, far = (
        np.asarray(grey.filter(ImageFilter.GaussianBlur(size)), dtype=np.int64) for size in (NEAR, FAR)
    )
    return (far - near).clip(min=0)


def histogram(shard: Shard) -> Counts:
    """Return the labelled pixels by darkness and class, int64 [256, C], of all images of a shard."""
    table = shard.classes
    if table is None:
        raise UserError(f"{shard.path} has no class table; make the shards with `python -m partitions`.")
    counts = np.zeros((GREYS, table.num_classes), dtype=np.int64)
    for index in range(len(shard)):
        label = entry_label(shard, index, table)
        if label is not None:
            known = label < table.num_classes
            np.add.at(counts, (darkness(shard, index)[known], label[known]), 1)
    return counts


def confusion(counts: Counts, margin: int) -> Confusion:
    """Return the confusion of "darker by at least ``margin`` is a crack" over counts [256, 2]."""
    return Confusion(2, 2, np.stack([counts[:margin].sum(axis=0), counts[margin:].sum(axis=0)]))


def best_margin(counts: Counts) -> int:
    """Return the margin with the highest IoU of the cracks."""
    found = [scores(confusion(counts, m), np.arange(2)).per_class_iou[1] or 0.0 for m in range(1, GREYS)]
    return 1 + int(np.argmax(found))


def two_means_margin(counts: Counts) -> int:
    """Return the threshold between the two means of all pixels' darkness (2-means); classes are not looked at."""
    mass = counts.sum(axis=1)
    values = np.arange(GREYS)
    margin = 1.0
    for _ in range(GREYS):
        dark = values >= margin
        means = [np.average(values[side], weights=mass[side] + 1e-9) for side in (dark, ~dark)]
        if abs(sum(means) / 2 - margin) < 1e-6:
            break
        margin = sum(means) / 2
    return int(np.ceil(margin))


@report_user_errors
def main() -> None:
    """Print IoU of both classes for each way to choose the margin."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=Path, default=ROOT / "shards" / "crackforest", help="shards folder")
    shards: Path = parser.parse_args().shards
    train = histogram(pool_shards(read_sites(shards), "pooled"))
    test = histogram(read_shard(shards / "val.jsonl"))
    if train.shape[1] != 2:
        raise UserError(f"{shards} has {train.shape[1]} classes; expected road surface and cracks.")
    ways = {
        "labels of the training photos": best_margin(train),
        "labels of the scored photos": best_margin(test),
        "2-means, no labels": two_means_margin(train),
    }
    print(f"{'margin chosen by':<32}{'margin':>8}{'crack IoU':>12}{'road IoU':>12}{'mIoU':>8}")
    for name, margin in ways.items():
        found = scores(confusion(test, margin), np.arange(2))
        road, crack = (100 * (value or 0.0) for value in found.per_class_iou)
        print(f"{name:<32}{margin:>8}{crack:>12.1f}{road:>12.1f}{100 * found.miou:>8.1f}")


if __name__ == "__main__":
    sys.exit(main())
