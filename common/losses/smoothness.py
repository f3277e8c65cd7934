"""Smoothness objective: like patches get like assignments to momentum prototypes (SmooSeg, NeurIPS 2023).

Patches with like features should get like assignments. With y the softmax of a code's cosines to the
teacher prototypes T, and fd, yd the cosines of features (rows centred) and of assignments,

    smooth = mean( (fd - shift) * (1 - yd) ),  within an image and against another one;
    data   = mean CE( cosines to the student prototypes P, nearest teacher prototype ),

where the data term moves P only and T follows P as a momentum copy. T are the centroids of the run: what
the server merges, and what predicts. No neighbours and no augmentation.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from common.losses.base import Batch, Objective, unit
from common.losses.correspondence import centre_rows, correlate
from common.losses.sampling import derangements
from common.models.head import SegmentationHead, init_centroids
from common.settings.objectives import OBJECTIVES, ObjectiveFacts
from common.settings.schema import RunConfig
from common.settings.section import Section
from common.settings.unsupervised import Local


class SmoothnessSettings(Section):
    """Settings ``loss.smoothness``."""

    intra_shift: float = Field(-0.02, description="shift within an image")
    negative_shift: float = Field(0.5, description="shift against another image")
    temperature: float = Field(0.1, gt=0, description="of the soft assignment to prototypes")
    momentum: float = Field(0.998, ge=0, le=1, description="how slowly the teacher prototypes follow")
    samples: int = Field(11, ge=2, description="root of the number of random patches per image")
    pointwise: bool = Field(True, description="center the feature correlations row by row")


def assignments(codes: torch.Tensor, prototypes: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the soft assignment of codes [..., D] to prototypes [K, D], which get no gradient: [..., K]."""
    return torch.softmax(unit(codes) @ unit(prototypes.detach()).T / temperature, dim=-1)


def smoothness_loss(
    features: torch.Tensor, soft: torch.Tensor, partners: torch.Tensor, settings: SmoothnessSettings
) -> torch.Tensor:
    """Return the smoothness of assignments.

    features [B, P, C] and soft assignments [B, P, K] at the same positions; partners: int64 [n, B],
    other images (n = 0 for a batch of one, which then has no negative term). All pairs of positions are
    compared.
    """
    directions, soft = unit(features), unit(soft)
    loss = torch.zeros((), device=soft.device)
    sides = [(settings.intra_shift, torch.arange(len(soft), device=soft.device), 1.0)]
    # several other images weigh together as much as the image itself
    sides += [(settings.negative_shift, other, 1 / len(partners)) for other in partners]
    for shift, other, weight in sides:
        with torch.no_grad():
            likeness = correlate(directions, [directions[other]])
            if settings.pointwise:
                likeness = centre_rows(likeness)
        loss = loss + weight * ((likeness - shift) * (1 - correlate(soft, [soft[other]]))).mean()
    return loss


def prototype_loss(codes: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of codes [M, D] under the student prototypes against their nearest teacher prototype.

    Codes are detached and cosines are the logits, without a temperature: only ``student`` [K, D] learns.
    """
    directions = unit(codes.detach())
    target = (directions @ unit(teacher.detach()).T).argmax(dim=1)
    return functional.cross_entropy(directions @ unit(student).T, target)


@OBJECTIVES.register(
    "smoothness",
    summary="like patches get like assignments to prototypes, which are the centroids (SmooSeg)",
    facts=ObjectiveFacts(settings=SmoothnessSettings),
)
class Smoothness(Objective):
    """The smoothness objective; ``prototypes`` [K, D] is its shared state, the teacher is the run's centroids."""

    def __init__(self, config: RunConfig, channels: int) -> None:
        super().__init__()
        self.settings = config.loss.own(SmoothnessSettings)
        model = config.model
        start = torch.from_numpy(init_centroids(model.clusters, model.dim, config.seed))
        self.prototypes = nn.Parameter(unit(start))
        self.teacher = self.prototypes.detach().clone()

    def start_round(self, round_number: int, head: SegmentationHead, centroids: torch.Tensor) -> None:
        """Take the received centroids as the teacher."""
        self.teacher = unit(centroids.detach())

    def forward(self, batch: Batch, head: SegmentationHead, generator: torch.Generator) -> torch.Tensor:
        """Compare random patches of each image with one another and with those of another image."""
        view, settings = batch.anchor, self.settings
        images, patches, _ = view.codes.shape
        partners = derangements(images, 1, generator).to(view.codes.device)
        chosen = torch.rand(images, patches, generator=generator).argsort(dim=1)[:, : settings.samples**2]
        rows = (torch.arange(images)[:, None], chosen)
        soft = assignments(view.codes[rows], self.teacher, settings.temperature)
        smooth = smoothness_loss(view.dropped[rows], soft, partners, settings)
        return smooth + prototype_loss(view.codes.flatten(0, 1), self.prototypes, self.teacher)

    def after_step(self, head: SegmentationHead) -> None:
        """Let the teacher follow: T <- momentum T + (1 - momentum) P."""
        momentum = self.settings.momentum
        self.teacher = momentum * self.teacher + (1 - momentum) * self.prototypes.detach()

    def groups(self, local: Local) -> list[dict[str, object]]:
        """Give the prototypes the centroids' learning rate."""
        return [{"params": [self.prototypes], "lr": local.centroid_lr}]

    def centroids(self) -> torch.Tensor:
        """Return the teacher."""
        return self.teacher
