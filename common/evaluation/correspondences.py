"""Precision and recall of correspondences: whether patches that are alike are of one class (STEGO, section 3.1).

Two patches correspond where the cosine of their features, or of their codes, is high. Labels say whether both are of
one class. Over all thresholds that gives a curve, for pairs within an image and for pairs of any two images. Above the
features' own curve a head has learned something; label-free training cannot see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from common.data.classes import IGNORE
from common.data.manifest import Shard
from common.evaluation.clusters import code_of, seen_label
from common.features.source import Features
from common.models.segmenter import Segmenter
from common.seeds import numpy_generator
from common.settings.unsupervised import Model

CORRESPONDENCES = "correspondences.json"
"""The file of a run directory that holds the curves of its last round."""

_IMAGES, _PATCHES, _POINTS = 24, 24, 40  # 576 patches make 165,600 pairs, 6,600 of them within an image


def precision_recall(cosines: NDArray[np.floating[Any]], same: NDArray[np.bool_]) -> dict[str, Any]:
    """Return precision and recall [40] of pairs taken by falling cosine [n], ``same`` [n] class, and their average.

    The average precision is the mean of the precision at every pair that is of one class. At least one has to be.
    """
    hits = np.cumsum(same[np.argsort(-cosines, kind="stable")])
    precision = hits / np.arange(1, len(hits) + 1)
    recall = hits / hits[-1]
    own = np.diff(hits, prepend=0) > 0
    chosen = np.searchsorted(recall, np.linspace(1 / _POINTS, 1, _POINTS)).clip(max=len(hits) - 1)
    return {
        "average_precision": float(precision[own].mean()),
        "precision": [round(float(value), 4) for value in precision[chosen]],
        "recall": [round(float(value), 4) for value in recall[chosen]],
    }


@torch.no_grad()
def correspondences(
    segmenter: Segmenter, features: Features, shard: Shard, model: Model, seed: int
) -> dict[str, Any] | None:
    """Return the curves of features and of codes, within images and between any, from a few labelled patches.

    ``model`` holds the settings that the features were made with. None where no two labelled patches are of one class,
    or all are.
    """
    units: dict[str, list[torch.Tensor]] = {"features": [], "codes": []}
    classes: list[NDArray[np.int64]] = []
    images: list[int] = []
    for index, rows, found in _patches(features, shard, model, seed):
        tokens = features.batch([index])
        code = code_of(segmenter, features, [index])
        for name, maps in (("features", tokens), ("codes", code)):
            units[name].append(functional.normalize(maps[0].flatten(1).T[rows].double().cpu(), dim=1))
        classes.append(found)
        images += [index] * len(rows)
    if not classes:
        return None
    upper = np.triu_indices(len(images), 1)
    of, shown = np.concatenate(classes), np.array(images)
    same, inside = of[upper[0]] == of[upper[1]], shown[upper[0]] == shown[upper[1]]
    if not (same & inside).any() or not (same & ~inside).any() or same.all():
        return None
    curves = []
    for name, parts in units.items():
        rows_of = torch.cat(parts)
        cosines = (rows_of @ rows_of.T).numpy()[upper]
        for where, chosen in (("within an image", inside), ("between images", ~inside)):
            curves.append({"name": f"{name}, {where}"} | precision_recall(cosines[chosen], same[chosen]))
    return {"images": len(classes), "chance": float(same.mean()), "curves": curves}


def _patches(
    features: Features, shard: Shard, model: Model, seed: int
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Yield an image's index, patches drawn from it and their classes: what the label says at the patch's middle."""
    height, width = features.grid
    chosen = np.unique(np.linspace(0, len(shard) - 1, min(_IMAGES, len(shard))).round().astype(np.int64))
    for index in chosen.tolist():
        label = seen_label(shard, index, model)
        if label is None:
            continue
        down = ((np.arange(height) + 0.5) * label.shape[0] / height).astype(np.int64)
        across = ((np.arange(width) + 0.5) * label.shape[1] / width).astype(np.int64)
        middle = label[down[:, None], across].ravel().astype(np.int64)
        known = np.flatnonzero(middle != IGNORE)
        rows = numpy_generator(seed, "correspondences", index).permutation(known)[:_PATCHES]
        if len(rows):
            yield index, rows, middle[rows]
