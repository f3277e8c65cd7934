"""How fast is the CRF, and does it say what sums over all pairs of pixels say?

    python benchmarks/crf.py --checkpoint runs/camvid-default-seed0 --shards shards/camvid

Frames of the scoring drive are segmented by a finished run at 320 x 320 (the published protocol), with the run's
own clusters and with `--clusters` that k-means finds in the frames' codes. Both implementations refine both, one
after the other in this run. The dense one is written from the formulas alone: every pair of pixels, no lattice, no
grid. Only pairs whose kernel is below exp(-16) are left out. It takes about two minutes of a core an image.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.checkpoint import Checkpoint, load_checkpoint
from common.clustering.kmeans import spherical_kmeans
from common.data.images import entry_image
from common.data.manifest import Shard, read_shard
from common.errors import report_user_errors
from common.evaluation.clusters import backbone_maps, seen_image
from common.evaluation.crf import DEFAULT, CrfSettings, mean_field
from common.models.backbone import prepare_image
from common.models.segmenter import COSINE_SHARPNESS, Segmenter

Bytes = npt.NDArray[np.uint8]

SIDE = 320
NEGLIGIBLE = 16.0
"""Exponent from which a pair of pixels is left out of the dense sums."""


class DenseKernel:
    """exp(-|x_i - x_j|^2 / 2) of all pairs of points [N, d], normalised on both sides.

    Points that lie together form blocks of a k-d tree, so that pairs of blocks that are far apart need no look.
    """

    def __init__(self, points: Tensor, block: int = 256) -> None:
        blocks = _split(points, torch.arange(len(points)), block)
        self.order = torch.cat(blocks)
        self.points = points[self.order]
        bounds = np.cumsum([0, *(len(b) for b in blocks)])
        self.blocks = [slice(int(a), int(b)) for a, b in itertools.pairwise(bounds)]
        low = torch.stack([self.points[b].amin(dim=0) for b in self.blocks])
        high = torch.stack([self.points[b].amax(dim=0) for b in self.blocks])
        gap = torch.maximum(low[:, None] - high, low - high[:, None]).clamp_(min=0)
        self.near = gap.square().sum(dim=-1) < 2 * NEGLIGIBLE
        self.scale = torch.ones(len(points), 1)
        self.scale = self(self.scale).rsqrt_()

    def __call__(self, values: Tensor) -> Tensor:
        """Filter [N, K]: every pair of blocks is looked at once and used both ways."""
        scaled = (values * self.scale)[self.order]
        out = torch.zeros_like(scaled)
        for index, block in enumerate(self.blocks):
            later = [other for other in self.near[index].nonzero().flatten().tolist() if other >= index]
            columns = torch.cat([torch.arange(self.blocks[o].start, self.blocks[o].stop) for o in later])
            kernel = _gaussian(self.points[block], self.points[columns])
            out[block] += kernel @ scaled[columns]
            size = block.stop - block.start  # the block with itself is complete
            out.index_add_(0, columns[size:], kernel[:, size:].T @ scaled[block])
        found = torch.empty_like(out)
        found[self.order] = out
        return found * self.scale


def _split(points: Tensor, members: Tensor, block: int) -> list[Tensor]:
    """Halve along the widest side until no more than ``block`` points are left together."""
    if len(members) <= block:
        return [members]
    side = int((points[members].amax(dim=0) - points[members].amin(dim=0)).argmax())
    ordered = members[points[members, side].argsort(stable=True)]
    half = len(ordered) // 2
    return _split(points, ordered[:half], block) + _split(points, ordered[half:], block)


def _gaussian(left: Tensor, right: Tensor) -> Tensor:
    """Return exp(-|a - b|^2 / 2) for points [n, d] and [m, d]."""
    middle = left.mean(dim=0)  # small numbers, so that nothing cancels
    a, b = left - middle, right - middle
    ones_a, ones_b = torch.ones(len(a), 1), torch.ones(len(b), 1)
    a = torch.cat([a, -a.square().sum(dim=1, keepdim=True) / 2, ones_a], dim=1)
    b = torch.cat([b, ones_b, -b.square().sum(dim=1, keepdim=True) / 2], dim=1)
    return (a @ b.T).exp_()


def dense_mean_field(
    unaries: Sequence[Tensor], image: Bytes, settings: CrfSettings = DEFAULT
) -> list[Tensor]:
    """Return the marginals [K, H, W] for each of several unary energies [K, H, W] of one picture."""
    height, width = image.shape[:2]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([rows, columns], dim=-1).reshape(-1, 2).float()
    colour = torch.from_numpy(image.copy()).reshape(-1, 3).float()
    near = DenseKernel(place / settings.smooth_pixels)
    alike = DenseKernel(
        torch.cat([place / settings.bilateral_pixels, colour / settings.bilateral_colour], dim=1)
    )
    sizes = [len(unary) for unary in unaries]
    energy = torch.cat([unary.float().reshape(len(unary), -1).T for unary in unaries], dim=1)

    def softmax(logits: Tensor) -> Tensor:
        return torch.cat([torch.softmax(part, dim=1) for part in torch.split(logits, sizes, dim=1)], dim=1)

    marginals = softmax(-energy)
    for _ in range(settings.iterations):
        message = settings.smooth_weight * near(marginals) + settings.bilateral_weight * alike(marginals)
        marginals = softmax(message - energy)
    return [part.T.reshape(-1, height, width) for part in torch.split(marginals, sizes, dim=1)]


def frames(shard: Shard, count: int) -> list[int]:
    """Return the numbers of ``count`` images, evenly over the shard."""
    return [round(place) for place in np.linspace(0, len(shard) - 1, count)]


def predictions(
    checkpoint: Checkpoint, shard: Shard, indices: Sequence[int], clusters: int
) -> dict[int, list[Tensor]]:
    """Return cosines [K, 320, 320] of the images, by K: that of the run, and ``clusters``."""
    from common.evaluation.clusters import apply_protocol
    from common.models.backbone import load_backbone

    model, upsample, _ = apply_protocol(checkpoint.config.model, "center-320")
    segmenter = Segmenter.from_checkpoint(checkpoint, model=model, upsample=upsample)
    images = torch.stack([prepare_image(entry_image(shard, index), model) for index in indices])
    with torch.no_grad():
        codes = segmenter.code(backbone_maps(load_backbone(model, checkpoint.config.seed, "cpu"), images))
    points = codes.permute(0, 2, 3, 1).flatten(0, 2).numpy()
    more = spherical_kmeans(points, clusters, seed=0, restarts=1).centres.astype(np.float32)
    found: dict[int, list[Tensor]] = {}
    for centroids in (segmenter.centroids, torch.from_numpy(more)):
        one = Segmenter(segmenter.head, centroids, segmenter.geometry, upsample=upsample)
        found[len(centroids)] = [one.logits_of_code(code.unsqueeze(0), (SIDE, SIDE))[0] for code in codes]
    return found


@dataclass(frozen=True)
class Row:
    """One image: seconds of both ways, and by K the share of pixels that agree, and that the CRF changes."""

    image: int
    fast: float
    dense: float
    agreement: dict[int, float]
    changed: dict[int, float]


def least_seconds(unary: Tensor, image: Bytes, repeats: int) -> float:
    """Return the least seconds of several runs of the lattice CRF: other work on the machine only adds."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        mean_field(unary, image)
        found.append(time.perf_counter() - start)
    return min(found)


def measure(index: int, image: Bytes, cosines: dict[int, Tensor], repeats: int) -> Row:
    """Refine one image both ways, for every K; the fast way is timed at the largest."""
    unaries = {
        clusters: -torch.log_softmax(COSINE_SHARPNESS * values, dim=0) for clusters, values in cosines.items()
    }
    start = time.perf_counter()
    expected = dense_mean_field(list(unaries.values()), image)
    dense = time.perf_counter() - start
    agreement, changed = {}, {}
    for (clusters, unary), marginals in zip(unaries.items(), expected, strict=True):
        labels = marginals.argmax(dim=0)
        agreement[clusters] = float((mean_field(unary, image).argmax(dim=0) == labels).double().mean())
        changed[clusters] = float((unary.argmin(dim=0) != labels).double().mean())
    return Row(index, least_seconds(unaries[max(unaries)], image, repeats), dense, agreement, changed)


@report_user_errors
def main() -> None:
    """Print one line per image, then the least and the mean agreement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a finished run or a checkpoint of it")
    parser.add_argument("--shards", type=Path, default=Path("shards/camvid"), help="shards folder")
    parser.add_argument("--split", default="dev.jsonl", help="manifest in the shards folder")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--clusters", type=int, default=27)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--repeats", type=int, default=5, help="fast runs an image, of which the fastest counts"
    )
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    shard = read_shard(asked.shards / asked.split)
    checkpoint = load_checkpoint(asked.checkpoint)
    indices = frames(shard, asked.images)
    cosines = predictions(checkpoint, shard, indices, asked.clusters)
    columns = "".join(f" | agree, K = {k} | changed, K = {k}" for k in cosines)
    print(
        f"| image | fast (s) | dense (s) | ratio{columns} |\n|---|---:|---:|---:{'|---:|---:' * len(cosines)}|"
    )
    rows = []
    for position, index in enumerate(indices):
        picture = Image.fromarray(seen_image(shard, index, checkpoint.config.model))
        image = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        row = measure(index, image, {k: maps[position] for k, maps in cosines.items()}, asked.repeats)
        cells = "".join(f" | {row.agreement[k]:.2%} | {row.changed[k]:.1%}" for k in cosines)
        ratio = row.dense / row.fast
        print(f"| {index} | {row.fast:.2f} | {row.dense:.0f} | {ratio:.0f}{cells} |", flush=True)
        rows.append(row)
    fast = float(np.mean([row.fast for row in rows]))
    print(f"\n{SIDE} x {SIDE}, K = {max(cosines)}, {asked.threads} threads: {fast:.2f} s an image; agreement")
    for k in cosines:
        shares = [row.agreement[k] for row in rows]
        print(f"K = {k}: at least {min(shares):.2%}, on average {np.mean(shares):.2%}")


if __name__ == "__main__":
    sys.exit(main())
