"""How does any checkpoint segment one picture?

Frozen features with centroids, or a whole network: commands that take a checkpoint see a `Predictor`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from common.checkpoint import Checkpoint
from common.data.classes import ClassTable
from common.device import choose_device
from common.errors import UserError
from common.evaluate import backbone_maps, predict
from common.models.inputs import prepare_image
from common.overlay import Bytes, Legend, make_legend
from common.segmenter import SHARPNESS, Segmenter
from common.site_models import chosen_model, refuse_site
from server.evaluate_clusters import check_backbone, crf_refinement

if TYPE_CHECKING:
    from common.models.backbone import Backbone

Cluster = int | Literal["auto", "global"]
"""Which network of a run with style clusters: a cluster's by number, the shared one, or per picture that of the
cluster nearest to the picture's own style (where the run has none, "auto" is the shared one)."""


class Predictor(Protocol):
    """A trained model on one device; K outputs (clusters or classes) per pixel."""

    @property
    def named(self) -> bool:
        """Whether outputs stand for classes, not for numbered clusters."""

    @property
    def legend(self) -> Legend:
        """Names and colours of the outputs."""

    def logits(self, image: Bytes, *, flip: bool = False) -> Tensor:
        """Return float32 [K, H, W] for a picture uint8 [H, W, 3]; a softmax over K gives probabilities."""

    def labels(self, image: Bytes, *, flip: bool = False, crf: bool = False) -> Bytes:
        """Return the output with the largest logit of every pixel, uint8 [H, W]; ``crf`` refines first."""

    def words(self) -> list[str]:
        """Return what a page should say about how pictures were segmented so far."""


def load_predictor(
    saved: Checkpoint, where: str, device: str = "auto", cluster: Cluster = "auto", site: str | None = None
) -> Predictor:
    """Return what segments pictures as a checkpoint says.

    Args:
        saved: the checkpoint.
        where: its path, for messages.
        device: "auto", "cpu" or "cuda".
        cluster: see `Cluster`.
        site: whose own model, of a run whose sites do not share all (see `common.site_models`).

    Raises:
        UserError: weights that do not fit, a cluster or a site that the run does not have, or a site that is missing.
    """
    if saved.config.task == "unsupervised":
        refuse_cluster(saved, where, cluster)
        return ClusterPredictor(chosen_model(saved, where, site), where, device)
    refuse_site(saved, where, site)
    from server.network_predictor import NetworkPredictor

    return NetworkPredictor(saved, where, device, cluster)


def refuse_cluster(saved: Checkpoint, where: str, cluster: Cluster) -> None:
    """Raise `UserError` where a style cluster is asked of a run of a task that has none."""
    if isinstance(cluster, int):
        raise UserError(
            f"--cluster {cluster} was given, but {where} is of task '{saved.config.task}', which has no style "
            "clusters; leave it out."
        )


class ClusterPredictor:
    """A frozen backbone, a head and centroids. Pictures are squashed to the input size, never cropped."""

    def __init__(self, saved: Checkpoint, where: str, device: str = "auto") -> None:
        from common.models.backbone import load_backbone

        self.saved, self.device = saved, choose_device(device)
        self.model = saved.config.model.model_copy(update={"crop": "none"})
        self.backbone: Backbone = load_backbone(self.model, saved.config.seed, self.device)
        check_backbone(saved, self.backbone.weights_hash, self.backbone.channels, where)
        self.segmenter = Segmenter.from_checkpoint(saved, model=self.model).to(self.device)

    @property
    def named(self) -> bool:
        """Whether the clusters were matched to classes when the run was scored."""
        return self.saved.mapping is not None and self.saved.classes is not None

    @property
    def legend(self) -> Legend:
        """Classes where clusters were matched to some, else numbers."""
        return make_legend(self.segmenter.num_clusters, self.saved.classes, self.saved.mapping)

    @torch.no_grad()
    def code(self, image: Bytes, flip: bool = False) -> Tensor:
        """Return the code [1, D, h, w] of a picture."""
        prepared = prepare_image(image, self.model).unsqueeze(0).to(self.device)
        mirrored = backbone_maps(self.backbone, prepared.flip(-1)) if flip else None
        return self.segmenter.code(backbone_maps(self.backbone, prepared), mirrored)

    def logits(self, image: Bytes, *, flip: bool = False) -> Tensor:
        """Return sharpened cosines [K, H, W]; see `Predictor`."""
        return SHARPNESS * self.segmenter.logits_of_code(self.code(image, flip), image.shape[:2])[0]

    def labels(self, image: Bytes, *, flip: bool = False, crf: bool = False) -> Bytes:
        """Return clusters; see `Predictor`."""
        refine = crf_refinement() if crf else None
        return predict(self.segmenter, self.code(image, flip), image.shape[:2], refine, image)

    def words(self) -> list[str]:
        """Return nothing: there is one model."""
        return []


def need_classes(saved: Checkpoint, where: str) -> ClassTable:
    """Return the class table of a network's checkpoint; raises `UserError` where it has none."""
    if saved.classes is None:
        raise UserError(f"Checkpoint {where} holds a network but names no classes; use another checkpoint.")
    return saved.classes
