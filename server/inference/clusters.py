"""How does any checkpoint segment one picture?

Frozen features with centroids, or a whole network: commands that take a checkpoint see a `Predictor`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.checkpoint import Checkpoint
from common.evaluation.clusters import backbone_maps, predict
from common.evaluation.overlay import Bytes, Legend, make_legend
from common.evaluation.protocol import check_backbone, crf_refinement
from common.models.inputs import prepare_image
from common.models.segmenter import COSINE_SHARPNESS, Segmenter
from common.system.device import choose_device

if TYPE_CHECKING:
    from common.models.backbone import Backbone


class ClusterPredictor:
    """A frozen backbone, a head and centroids. Images are squashed to the input size, never cropped."""

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
        return COSINE_SHARPNESS * self.segmenter.logits_of_code(self.code(image, flip), image.shape[:2])[0]

    def labels(self, image: Bytes, *, flip: bool = False, crf: bool = False) -> Bytes:
        """Return clusters; see `Predictor`."""
        refine = crf_refinement() if crf else None
        return predict(self.segmenter, self.code(image, flip), image.shape[:2], refine, image)

    def words(self) -> list[str]:
        """Return nothing: there is one model."""
        return []
