"""Evaluation of a student: a whole network whose outputs are clusters, with labels and without."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from common.data.images import Bytes, entry_image, entry_pair
from common.data.manifest import Shard
from common.errors import UserError
from common.evaluation.clusters import Evaluation
from common.evaluation.metrics import Confusion
from common.system.cli import Progress


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
