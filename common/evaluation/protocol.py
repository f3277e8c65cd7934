"""Evaluation protocols: matching of clusters, image sizes, refinement by the CRF."""

from __future__ import annotations

from typing import Literal

from common.checkpoint import Checkpoint
from common.errors import UserError
from common.evaluation.clusters import Refine, ScoreAt
from common.models.segmenter import Upsample
from common.settings.unsupervised import Model

Matching = Literal["hungarian", "many-to-one", "checkpoint"]


Protocol = Literal["label-size", "center-320"]


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


def crf_refinement() -> Refine:
    """Return the dense CRF as `evaluate` and `segment` want it."""
    from common.evaluation.crf import refine

    return refine


def apply_protocol(model: Model, protocol: Protocol) -> tuple[Model, Upsample, ScoreAt]:
    """Return backbone settings, order of enlarging, and where to score."""
    if protocol == "label-size":
        return model, "cosines", "label"
    if protocol != "center-320":
        raise UserError(f"Protocol {protocol!r} is unknown; expected label-size or center-320.")
    changes = {"height": 320, "width": 320, "crop": "center", "resize": "nearest"}
    return model.model_copy(update=changes), "code", "input"
