"""The predictor of frozen features, a head and centroids."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.checkpoint import Checkpoint
from common.errors import UserError
from common.evaluation.clusters import (
    backbone_maps,
    check_backbone,
    predict,
    refinement,
    segmenting_model,
)
from common.evaluation.overlay import Bytes, Legend, make_legend
from common.features.cache import cell_colours
from common.models.backbone import prepare_image
from common.models.input_size import fitted_model
from common.models.segmenter import COSINE_SHARPNESS, Segmenter
from common.models.site_models import chosen_model
from common.system.device import choose_device
from server.inference.base import (
    Cluster,
    Exportable,
    Exported,
    Size,
    described_model,
    refuse_cluster,
)

if TYPE_CHECKING:
    from common.models.backbone import Backbone


class WholeModel(Exportable):
    """Images fp32 [B, 3, H, W] in 0..1, RGB, of the configured size -> cosines [B, K, H, W].

    Normalization is inside. The cluster of a pixel is the argmax over K.
    """

    output = "cosines"

    def __init__(self, backbone: Backbone, segmenter: Segmenter, size: Size) -> None:
        super().__init__()
        self.backbone, self.segmenter, self.size = backbone, segmenter, size

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.segmenter.logits(backbone_maps(self.backbone, images), self.size)


class ClusterPredictor:
    """A frozen backbone, a head and centroids. Images are squashed to the input size, never cropped."""

    def __init__(
        self,
        saved: Checkpoint,
        where: str,
        device: str = "auto",
        cluster: Cluster = "auto",
        site: str | None = None,
    ) -> None:
        from common.models.backbone import load_backbone

        refuse_cluster(saved, where, cluster)
        saved = chosen_model(saved, where, site)
        self.saved, self.where, self.site, self.device = saved, where, site, choose_device(device)
        # whoever segments wants all of an image, also where training looked at a part
        self.fitted = segmenting_model(saved.config).model_copy(update={"crop": "none"})
        # the size of a landscape image of 4 to 3 stands for all until there is one to segment
        self.model = fitted_model(self.fitted, 3 / 4)
        self.backbone: Backbone = load_backbone(self.model, saved.config.seed, self.device)
        check_backbone(saved, self.backbone.weights_hash, self.backbone.channels, where)
        self.segmenter = Segmenter.from_checkpoint(saved, model=self.model).to(self.device)
        own = (self.model.height, self.model.width)
        self.sizes = {own: (self.model, self.backbone, self.segmenter)}

    def fit(self, image: Bytes) -> None:
        """Let images enter at the size that follows this one, where the run says so (``model.pixels``)."""
        model = fitted_model(self.fitted, image.shape[0] / image.shape[1])
        size = (model.height, model.width)
        if size not in self.sizes:  # as many as there are shapes of images: probing one takes a forward pass
            segmenter = Segmenter.from_checkpoint(self.saved, model=model).to(self.device)
            self.sizes[size] = (model, self.backbone.resized(size), segmenter)
        self.model, self.backbone, self.segmenter = self.sizes[size]

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
        """Return the code [1, D, h, w] of an image."""
        self.fit(image)
        prepared = prepare_image(image, self.model).unsqueeze(0).to(self.device)
        mirrored = backbone_maps(self.backbone, prepared.flip(-1)) if flip else None
        maps = backbone_maps(self.backbone, prepared)
        return self.segmenter.code(maps, mirrored, cell_colours(prepared, self.backbone.grid))

    def logits(self, image: Bytes, *, flip: bool = False) -> Tensor:
        """Return sharpened cosines [K, H, W]; see `Predictor`."""
        return COSINE_SHARPNESS * self.segmenter.logits_of_code(self.code(image, flip), image.shape[:2])[0]

    def labels(self, image: Bytes, *, flip: bool = False, crf: bool = False) -> Bytes:
        """Return clusters; see `Predictor`."""
        code = self.code(image, flip)
        refine = refinement(self.saved.config, self.model, crf)
        return predict(self.segmenter, code, image.shape[:2], refine, image)

    def notes(self) -> list[str]:
        """Return nothing: there is one model."""
        return []

    def export(self, size: Size | None = None) -> Exported:
        """Return backbone, head and centroids as one module; images have the run's input size."""
        model = self.model
        if size is not None:
            raise UserError(
                f"--size was given, but {self.where} takes images of {model.height} x {model.width} pixels only; "
                "leave it out."
            )
        if self.segmenter.within is not None or self.segmenter.one_kind:
            raise UserError(
                f"{self.where} treats codes inside each image, which ONNX does not hold; export "
                "a network that was trained on its masks (recipe label-free-student)."
            )
        entries, size = self.legend.as_json(), (model.height, model.width)
        described = {"clusters": json.dumps([entries[int(index)] for index in self.legend.of_cluster])}
        if self.site is not None:
            described["site"] = self.site
        module = WholeModel(self.backbone, self.segmenter, size).eval()
        return module, described_model(self.saved, model.backbone, size) | described
