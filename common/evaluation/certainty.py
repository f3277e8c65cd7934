"""Certainty of clusters: which pixels of each cluster lead most, and how a network that learned them is scored.

A pixel is certain by how much its winner leads the next best.

Sites make masks of it for a network to learn from. The predictions are those of `common.evaluation.clusters.predict`,
which also scores and segments; where colors refine them, certain is what is probable by far.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.data.classes import IGNORE
from common.data.images import Bytes, entry_image, entry_pair, entry_size
from common.data.manifest import Shard
from common.errors import UserError
from common.evaluation.clusters import Evaluation, code_of, predict, seen_box, seen_image, segmenting_model
from common.evaluation.colors import color_shares, uses_colors
from common.evaluation.metrics import Confusion
from common.features.source import Features
from common.models.segmenter import Segmenter
from common.settings.schema import RunConfig
from common.system.cli import Progress

Margins = npt.NDArray[np.float16]

LEVELS = 0x7C00 + 1
"""Non-negative float16 sort as their bits do: 0 to infinity are the numbers 0 to 0x7c00."""

ROWS = 64
"""Rows of an image whose scores are held at once: scores of all clusters are many times the image."""


def margins(segmenter: Segmenter, code: Tensor, labels: Bytes) -> Margins:
    """Return by how much each pixel's cluster leads the next best, float16 [H, W], 0 where another leads.

    ``labels`` uint8 [H, W] are `predict`'s, which may have looked at more than scores. ``code`` is [1, D, h, w].
    """
    height, width = labels.shape
    found = np.empty((height, width), dtype=np.float16)
    for top in range(0, height, ROWS):
        rows = slice(top, top + ROWS)
        scores = segmenter.logits_of_code(code, (height, width), rows)[0]
        chosen = torch.from_numpy(labels[rows].astype(np.int64)).to(scores.device)[None]
        own = scores.gather(0, chosen)
        others = scores.scatter(0, chosen, -torch.inf).amax(dim=0)
        found[rows] = (own[0] - others).clamp(0, 60000).half().cpu().numpy()
    return found


@torch.no_grad()
def certain_predictions(
    segmenter: Segmenter, features: Features, shard: Shard, config: RunConfig, batch: int = 8
) -> Iterator[tuple[int, Bytes, Margins]]:
    """Yield of every image its index, clusters uint8 [H, W] and margins float16 [H, W], at its own size.

    ``features`` are those of training, or finer ones of `segmenting_model`. What the backbone did not see
    (``model.crop``) is `IGNORE`, with a margin of 0. No label is opened.
    """
    model = segmenting_model(config)
    for start in range(0, len(shard), batch):
        indices = list(range(start, min(start + batch, len(shard))))
        codes = code_of(segmenter, features, indices)
        for offset, index in enumerate(indices):
            size = entry_size(shard, index)
            left, top, right, bottom = seen_box(size, model)
            labels = np.full(size, IGNORE, dtype=np.uint8)
            leads = np.zeros(size, dtype=np.float16)
            code, seen = codes[offset : offset + 1], (bottom - top, right - left)
            if uses_colors(config):  # the same shares whose largest is what `predict` says
                cosines = segmenter.logits_of_code(code, seen)[0]
                shares = color_shares(cosines, seen_image(shard, index, model), config.refine, model.height)
                best = shares.topk(2, dim=0)
                found = best.indices[0].to(torch.uint8).cpu().numpy()
                lead = (best.values[0] - best.values[1]).half().cpu().numpy()
            else:
                found = predict(segmenter, code, seen)
                lead = margins(segmenter, code, found)
            labels[top:bottom, left:right], leads[top:bottom, left:right] = found, lead
            yield index, labels, leads


class Thresholds:
    """Counts margins by cluster, exactly and in little memory, and says from which on a pixel is certain."""

    def __init__(self, clusters: int) -> None:
        self.counts = np.zeros((clusters, LEVELS), dtype=np.int64)

    def add(self, labels: Bytes, leads: Margins) -> None:
        """Count the pixels of an image; those that are `IGNORE` have no cluster."""
        inside = labels != IGNORE
        places = labels[inside].astype(np.int64) * LEVELS + leads[inside].view(np.uint16)
        self.counts += np.bincount(places, minlength=self.counts.size).reshape(self.counts.shape)

    def least(self, keep: float) -> Margins:
        """Return the margin [K] from which on a share ``keep`` of each cluster's pixels lies, or just more of them."""
        above = self.counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # pixels of at least each margin
        wanted = np.ceil(keep * above[:, :1]).astype(np.int64)
        level = (above >= wanted).sum(axis=1) - 1  # falls along the levels, so the last that still has enough
        least: Margins = level.astype(np.uint16).view(np.float16)
        return least


def count_clusters(
    predict: Callable[[Bytes], Bytes],
    shard: Shard,
    clusters: int,
    *,
    keep: Collection[int] = (),
    order: Collection[int] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Segment every image and count clusters against its label, where it has one, at the label's own size.

    Args:
        predict: turns an image uint8 [H, W, 3] into clusters uint8 [H, W].
        shard: images and, with a class table, labels. Label files are opened here, and only with a table.
        clusters: K of the counts [K, C].
        keep: indices of images whose cluster maps are wanted.
        order: which images; by default all.
        progress: called with (done, total) images.

    ``patches`` of what is returned counts pixels; there is no cosine. Raises `UserError` where labels are named and no
    class table is known, or a label does not fit its image.
    """
    named = any(entry.label for entry in shard.entries)
    if named and shard.classes is None:
        raise UserError(
            f"The manifest {shard.path} names labels but no class table is known; "
            "name one (--classes camvid, or a JSON file)."
        )
    found = Evaluation(np.zeros(clusters, dtype=np.int64), 0.0, 0)
    if named and shard.classes is not None:
        found.confusion = Confusion(clusters, shard.classes.num_classes)
    chosen = list(range(len(shard)) if order is None else order)
    for done, index in enumerate(chosen, start=1):
        labelled = found.confusion is not None and shard.entries[index].label is not None
        if labelled and shard.classes is not None and found.confusion is not None:
            image, label = entry_pair(shard, index, shard.classes)
            predicted = predict(image)
            found.confusion.update(predicted, label)
            found.num_labelled += 1
        else:
            predicted = predict(entry_image(shard, index))
        found.patches += np.bincount(predicted.ravel(), minlength=clusters)
        found.num_images += 1
        if index in keep:
            found.predictions[index] = predicted
        if progress is not None:
            progress(done, len(chosen))
    return found
