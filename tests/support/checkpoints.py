"""A tiny model on disk: random backbone, random head, random centroids, several clusters in any picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from common.checkpoint import Checkpoint, checkpoint_path, save_checkpoint
from common.config import load_config
from common.data.classes import ClassTable
from common.evaluate import backbone_maps
from common.models.backbone import Backbone, load_backbone
from common.models.head import SegmentationHead, build_head, init_centroids, state_to_numpy


def write_checkpoint(
    run_dir: Path,
    classes: ClassTable | None = None,
    mapping: list[int] | None = None,
    weights_hash: str | None = None,
    **settings: object,
) -> Path:
    """Write round 1 of a run and return the path of its arrays."""
    given: dict[str, object] = {
        "name": "tiny",
        "model.weights": "random",
        "model.height": 65,
        "model.width": 97,
        "model.clusters": 6,
        "model.dim": 8,
        **settings,
    }
    config = load_config(given)
    backbone = load_backbone(config.model, config.seed, "cpu")
    head = _centred_head(backbone, build_head(backbone.channels, config.model, seed=1))
    path = checkpoint_path(run_dir, 1)
    checkpoint = Checkpoint(
        round=1,
        head=head,
        centroids=init_centroids(config.model.clusters, config.model.dim, seed=2),
        config=config,
        classes=classes,
        weights_hash=backbone.weights_hash if weights_hash is None else weights_hash,
        channels=backbone.channels,
        grid=backbone.grid,
        mapping=mapping,
    )
    save_checkpoint(path, checkpoint)
    return path


def _centred_head(backbone: Backbone, head: SegmentationHead) -> dict[str, np.ndarray]:
    """Shift the codes to mean 0: a random backbone says nearly the same of every patch."""
    size = (1, 3, *backbone.size)
    noise = torch.rand(size, generator=torch.Generator().manual_seed(3))
    code = head.eval()(backbone_maps(backbone, noise.cumsum(-1) / noise.sum(-1, keepdim=True)))
    head.linear.bias.data -= code.detach().mean(dim=(0, 2, 3))
    return state_to_numpy(head)
