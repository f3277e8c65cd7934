"""The interface of predictors, and what each of them refuses."""

from __future__ import annotations

import json
from typing import Literal, Protocol

from torch import Tensor, nn

from common.checkpoint import Checkpoint
from common.data.classes import ClassTable, cluster_table
from common.data.images import Bytes
from common.errors import UserError
from common.evaluation.overlay import Legend

# Which network of a run with style clusters: a cluster's by number, the shared one, or per image that of the cluster
# nearest to the image's own style (where the run has none, "auto" is the shared one).
Cluster = int | Literal["auto", "global"]

# Height and width of an image in pixels.
Size = tuple[int, int]


class Exportable(nn.Module):
    """A whole model from images fp32 [B, 3, H, W] in 0..1 to scores; ``output`` names them, ``size`` is (H, W)."""

    output: str
    size: Size


# A model as one module, and what its file says of it by key.
Exported = tuple[Exportable, dict[str, str]]


class Predictor(Protocol):
    """A trained model on one device; K outputs (clusters or classes) per pixel."""

    @property
    def named(self) -> bool:
        """Whether outputs stand for classes, not for numbered clusters."""

    @property
    def legend(self) -> Legend:
        """Names and colors of the outputs."""

    def logits(self, image: Bytes, *, flip: bool = False) -> Tensor:
        """Return float32 [K, H, W] for an image uint8 [H, W, 3]; a softmax over K gives probabilities."""

    def labels(self, image: Bytes, *, flip: bool = False, crf: bool = False) -> Bytes:
        """Return the output with the largest logit of every pixel, uint8 [H, W]; ``crf`` refines first."""

    def notes(self) -> list[str]:
        """Return what a page should say about how images were segmented so far."""

    def export(self, size: Size | None = None) -> Exported:
        """Return the model as one module for images of ``size``; raises `UserError` for one that cannot be."""


def refuse_cluster(saved: Checkpoint, where: str, cluster: Cluster) -> None:
    """Raise `UserError` where a style cluster is asked of a run of a task that has none."""
    if isinstance(cluster, int):
        raise UserError(
            f"--cluster {cluster} was given, but {where} is of task '{saved.config.task}', which has no style "
            "clusters; leave it out."
        )


def checkpoint_classes(saved: Checkpoint, where: str) -> ClassTable:
    """Return what the outputs of a network's checkpoint stand for; raises `UserError` where it does not say.

    Those of a student are clusters.
    """
    if saved.config.facts.from_clusters:
        return cluster_table(saved.config.model.clusters)
    if saved.classes is None:
        raise UserError(f"Checkpoint {where} holds a network but names no classes; use another checkpoint.")
    return saved.classes


def described_model(saved: Checkpoint, backbone: str, size: Size) -> dict[str, str]:
    """Return what an exported file says of its run and of the images that it takes."""
    return {
        "run": saved.config.name,
        "round": str(saved.round),
        "backbone": backbone,
        "input": json.dumps({"height": size[0], "width": size[1], "range": [0, 1], "order": "RGB"}),
    }
