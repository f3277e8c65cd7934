"""Evaluation of a segmenter on a shard, with labels and without, and the protocols for it.

Sites and server run the same code. Counts add up: those of several sites are summed, the sum is matched and scored
once. A mean of per-site scores is never formed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from common.checkpoint import Checkpoint
from common.data.images import Bytes, entry_image, entry_label, entry_size
from common.data.manifest import Shard
from common.errors import UserError
from common.evaluation.metrics import Confusion
from common.features.source import Features
from common.models.backbone import crop_box, prepare_image
from common.models.segmenter import Segmenter, Upsample
from common.settings.schema import RunConfig
from common.settings.unsupervised import Model

if TYPE_CHECKING:
    from common.models.backbone import Backbone

Mirrored = Callable[[list[int]], Tensor]
Refiner = Callable[[Tensor, Bytes], Bytes]
ScoreAt = Literal["label", "input"]
Matching = Literal["hungarian", "many-to-one", "checkpoint"]
EvalProtocol = Literal["label-size", "center-320"]


@dataclass
class Evaluation:
    """Sums over the images of a shard.

    Without labels ``confusion`` is None and the other fields, which count patches of the feature grid,
    say how the clusters are used. ``predictions`` are cluster maps of the images asked for, by index.
    """

    patches: npt.NDArray[np.int64]
    cosine_sum: float
    num_images: int
    confusion: Confusion | None = None
    num_labelled: int = 0
    predictions: dict[int, Bytes] = field(default_factory=dict)

    @property
    def mean_cosine(self) -> float:
        """Mean cosine of a patch's code to its nearest centroid, -1..1: how compact the clusters are."""
        return self.cosine_sum / max(1, int(self.patches.sum()))

    @property
    def cluster_share(self) -> list[float]:
        """Fraction of all patches in each cluster."""
        return [float(share) for share in self.patches / max(1, int(self.patches.sum()))]

    @property
    def entropy(self) -> float:
        """Entropy of the shares over log K: 1 where all clusters are used alike, 0 where one takes all."""
        share = self.patches[self.patches > 0] / max(1, int(self.patches.sum()))
        return abs(float(-(share * np.log(share)).sum() / np.log(max(2, len(self.patches)))))


@torch.no_grad()
def evaluate_segmenter(
    segmenter: Segmenter,
    features: Features,
    shard: Shard,
    model: Model,
    *,
    score_at: ScoreAt = "label",
    mirrored: Mirrored | None = None,
    refine: Refiner | None = None,
    keep: Collection[int] = (),
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Segment every image of a shard and count agreement with its label, where it has one.

    Args:
        segmenter: K clusters over features [B, C, h, w].
        features: the frozen features of the shard's images, in the shard's order.
        shard: images and, with a class table, labels, whose files are opened here.
        model: the settings that the features were made with (size and crop).
        score_at: "label" compares at the label's own size (the part of it that the crop kept);
            "input" resizes labels to the input size by nearest neighbour, as the reference protocol does.
        mirrored: gives the features of mirrored images (see `mirrored_features`): flip averaging.
        refine: turns cosines [K, H, W] and the image uint8 [H, W, 3] into clusters uint8 [H, W]. With
            score_at "input" the image is the backbone's own input, as in the reference protocol.
        keep: indices of images whose cluster maps are wanted.
        batch: images per step; memory does not depend on the number of images.
        progress: called with (done, total) images.

    Raises:
        UserError: labels are named but no class table is known, or a label does not fit its image's crop.
    """
    if len(features) != len(shard):
        raise ValueError(
            f"{len(features)} features for the {len(shard)} images of {shard.name}; expected as many."
        )
    labels_named = any(entry.label for entry in shard.entries)
    if labels_named and shard.classes is None:
        raise UserError(
            f"The manifest {shard.path} names labels but no class table is known; "
            "name one (--classes camvid, or a JSON file)."
        )
    clusters = segmenter.num_clusters
    device = segmenter.centroids.device
    result = Evaluation(np.zeros(clusters, dtype=np.int64), 0.0, 0)
    if labels_named and shard.classes is not None:
        result.confusion = Confusion(clusters, shard.classes.num_classes)
    for start in range(0, len(shard), batch):
        indices = list(range(start, min(start + batch, len(shard))))
        mirror = None if mirrored is None else mirrored(indices).to(device)
        code = code_of(segmenter, features, indices, mirror)
        winner = segmenter.cosines(code).max(dim=1)
        result.cosine_sum += float(winner.values.double().sum())
        result.patches += np.bincount(winner.indices.cpu().numpy().ravel(), minlength=clusters)
        result.num_images += len(indices)
        for offset, index in enumerate(indices):
            label = seen_label(shard, index, model, score_at) if labels_named else None
            if label is None and index not in keep:
                continue
            size = label.shape if label is not None else _prediction_size(shard, index, model, score_at)
            picture = None if refine is None else seen_image(shard, index, model, score_at)
            predicted = predict(segmenter, code[offset : offset + 1], size, refine, picture)
            if label is not None and result.confusion is not None:
                result.confusion.update(predicted, label)
                result.num_labelled += 1
            if index in keep:
                result.predictions[index] = predicted
        if progress is not None:
            progress(indices[-1] + 1, len(shard))
    return result


def code_of(
    segmenter: Segmenter, features: Features, indices: list[int], mirrored: Tensor | None = None
) -> Tensor:
    """Return the codes [B, D, h, w] of some images of a shard, as a segmenter compares them."""
    device = segmenter.centroids.device
    colors = None if segmenter.within is None else features.colours(indices).to(device)
    return segmenter.code(features.batch(indices).to(device), mirrored, colors)


def predict(
    segmenter: Segmenter,
    code: Tensor,
    size: tuple[int, ...],
    refine: Refiner | None = None,
    picture: Bytes | None = None,
) -> Bytes:
    """Return the cluster of every pixel, uint8 [H, W], of one image's code [1, D, h, w].

    With ``refine`` the image is brought to ``size`` and decides together with the cosines.
    """
    if refine is None or picture is None:
        labels: Bytes = segmenter.labels_of_code(code, size)[0].cpu().numpy()
        return labels
    if picture.shape[:2] != tuple(size):
        picture = np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return refine(segmenter.logits_of_code(code, size)[0], picture)


def refinement(config: RunConfig, model: Model, crf: bool) -> Refiner | None:
    """Return what turns coarse maps into pixels: the dense CRF where it is asked for, else what the settings say."""
    if crf:
        from common.evaluation.crf import refine  # dear to load, and rarely wanted

        return refine
    if config.refine.colors:
        from common.evaluation.colors import color_refinement

        return color_refinement(config, model)
    return None


def segmenting_model(config: RunConfig) -> Model:
    """Return how images enter that are segmented or scored: at a finer stride where ``refine.stride`` says so."""
    stride = config.refine.stride
    return config.model.model_copy(update={"stride": stride}) if stride else config.model


def mirrored_features(shard: Shard, model: Model, seed: int, device: torch.device | str = "cpu") -> Mirrored:
    """Return a function that computes the features [B, C, h, w] of left-right mirrored images on the fly.

    The backbone is loaded at the first call. Mirrored features are not cached: they serve a final score.
    """
    loaded: list[Backbone] = []

    def compute(indices: list[int]) -> Tensor:
        from common.models.backbone import load_backbone

        if not loaded:
            loaded.append(load_backbone(model, seed, device))
        images = torch.stack([prepare_image(entry_image(shard, i), model).flip(-1) for i in indices])
        return backbone_maps(loaded[0], images.to(device))

    return compute


@torch.no_grad()
def backbone_maps(backbone: Backbone, images: Tensor) -> Tensor:
    """Return features [B, C, h, w] in fp32 of prepared images [B, 3, H, W]; the backbone is token-major."""
    tokens: Tensor = backbone(images)
    maps: Tensor = tokens.float().transpose(1, 2).unflatten(2, backbone.grid)  # type: ignore[no-untyped-call]
    return maps


def seen_label(shard: Shard, index: int, model: Model, score_at: ScoreAt = "label") -> Bytes | None:
    """Read one label and keep what the backbone saw of it, at the size to be scored."""
    label = None if shard.classes is None else entry_label(shard, index, shard.classes)
    if label is None:
        return None
    if score_at == "input":
        box = crop_box(label.shape[0], label.shape[1], model)
        picture = Image.fromarray(label).resize((model.width, model.height), Image.Resampling.NEAREST, box)
        return np.asarray(picture)
    left, top, right, bottom = seen_box(label.shape, model)
    return np.ascontiguousarray(label[top:bottom, left:right])


def seen_image(shard: Shard, index: int, model: Model, score_at: ScoreAt = "label") -> Bytes:
    """Read one image and keep what the backbone saw of it, at its own size or ("input") as it went in."""
    image = entry_image(shard, index)
    if score_at == "input":
        pixels = prepare_image(image, model).permute(1, 2, 0) * 255
        return np.asarray(pixels.round().to(torch.uint8).numpy())
    left, top, right, bottom = seen_box(image.shape[:2], model)
    return np.ascontiguousarray(image[top:bottom, left:right])


def _prediction_size(shard: Shard, index: int, model: Model, score_at: ScoreAt) -> tuple[int, int]:
    """Return the size (H, W) of a prediction for an image without a label."""
    if score_at == "input":
        return model.height, model.width
    left, top, right, bottom = seen_box(entry_size(shard, index), model)
    return bottom - top, right - left


def seen_box(size: tuple[int, ...], model: Model) -> tuple[int, int, int, int]:
    """Return the part that the backbone sees, rounded to whole pixels: left, top, right, bottom."""
    left, top, right, bottom = crop_box(size[0], size[1], model)
    return round(left), round(top), round(right), round(bottom)


def check_backbone(checkpoint: Checkpoint, weights_hash: str, channels: int, where: str) -> None:
    """Raise `UserError` where the backbone at hand is not the one that a checkpoint was trained on."""
    if checkpoint.channels != channels:
        raise UserError(
            f"Checkpoint {where} was trained on features of {checkpoint.channels} channels but the backbone "
            f"gives {channels}; use the backbone settings of the run."
        )
    if checkpoint.weights_hash and checkpoint.weights_hash != weights_hash:
        raise UserError(
            f"Checkpoint {where} was trained on the backbone weights {checkpoint.weights_hash[:12]} but "
            f"{weights_hash[:12]} are here; use the weights of the run ({checkpoint.config.model.weights})."
        )


def apply_protocol(model: Model, protocol: EvalProtocol) -> tuple[Model, Upsample, ScoreAt]:
    """Return backbone settings, order of enlarging, and where to score."""
    if protocol == "label-size":
        return model, "cosines", "label"
    if protocol != "center-320":
        raise UserError(f"Protocol {protocol!r} is unknown; expected label-size or center-320.")
    # the published evaluation scores the central 320 x 320 pixels
    changes = {"height": 320, "width": 320, "crop": "center", "resize": "nearest"}
    return model.model_copy(update=changes), "code", "input"
