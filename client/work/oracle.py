"""True labels as the training signal: the oracle of the published code, a ceiling and not a way to train.

Codes are then asked to agree where labels do, not where features do (STEGO's ``use_true_labels``). It takes the labels
of simulated sites alone: no server may have a real site open any.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from client.site import SiteConfig
from common.data.classes import IGNORE
from common.errors import UserError
from common.evaluation.clusters import seen_label
from common.models.input_size import fitted_to
from common.settings.schema import RunConfig


def label_signal(site: SiteConfig, settings: RunConfig, grid: tuple[int, int]) -> np.ndarray:
    """Return the share of each class in each cell of the grid: float32 [N, h*w, C + 1], the last one for no label.

    Raises `UserError` for a site that is not simulated, and where labels are missing.
    """
    if not site.simulated:
        raise UserError(
            "loss.correspondence.signal is 'labels', which simulations alone may use: this site opens no label; set it "
            "to 'features'."
        )
    shard = site.load_shard()
    if not shard.labelled or shard.classes is None:
        raise UserError(
            f"loss.correspondence.signal is 'labels' but the manifest of {shard.name} has labels and classes for not "
            "all images; make the shards with labels, or set it to 'features'."
        )
    model, count = fitted_to(settings, shard).model, shard.classes.num_classes
    rows = []
    for index in range(len(shard)):
        label = seen_label(shard, index, model, "input")
        assert label is not None, "every image has one"
        classes = torch.from_numpy(np.where(label == IGNORE, count, label).astype(np.int64))
        marks = functional.one_hot(classes, count + 1).permute(2, 0, 1).float()
        rows.append(functional.adaptive_avg_pool2d(marks, grid).flatten(1).T.numpy())
    return np.stack(rows)
