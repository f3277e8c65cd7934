"""Correspondence objective: codes agree where features do (STEGO, eq. 2 to 5; FUSS's local objective).

Where two patches' frozen features agree more than a shift, their codes are pulled together, elsewhere they
are pushed apart. Per pair of maps, with fd and cd the cosines of features and of codes at sampled
positions,

    loss = - mean( clamp(cd, 0 .. 0.8) * (centred(fd) - shift) ).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field

from common.losses.base import Batch, Objective, View, unit
from common.losses.sampling import (
    bilinear,
    derangements,
    gather,
    published_partners,
    salient_coords,
    uniform_coords,
)
from common.models.head import SegmentationHead
from common.settings.objectives import OBJECTIVES, ObjectiveFacts
from common.settings.schema import RunConfig
from common.settings.section import Section

# EAGLE's factor on the automatic shift of the negative term
AUTO_NEGATIVE_FACTOR = 3.5


class CorrespondenceSettings(Section):
    """Settings ``loss.correspondence``."""

    weight: float = Field(1.0, ge=0, description="of the three terms together")
    intra_weight: float = Field(0.67, ge=0, description="weight of an image against itself")
    inter_weight: float = Field(0.25, ge=0, description="weight of an image against a neighbor")
    negative_weight: float = Field(0.63, ge=0, description="weight of an image against others of the batch")
    shift: Literal["fixed", "auto"] = Field("fixed", description="auto: shifts follow the batch statistics")
    intra_shift: float = Field(0.18, description="shift within an image")
    inter_shift: float = Field(0.12, description="shift against a similar image")
    negative_shift: float = Field(0.46, description="shift against any other image")
    signal: Literal["features", "labels"] = Field(
        "features",
        description="what codes have to agree with; labels: a ceiling, in simulations alone (STEGO's true labels)",
    )
    samples: int = Field(11, ge=2, description="side of the grid of random positions per image")
    negatives: int = Field(5, ge=1, description="random partners per step in the negative term")
    negative_draw: Literal["derangement", "published"] = Field(
        "derangement",
        description="published: STEGO's draw, where an image may be drawn twice, and a single one meets itself",
    )
    salience: bool = Field(False, description="draw 90 % of the positions from patches that stand out")
    pointwise: bool = Field(True, description="center the feature correlations row by row")
    zero_clamp: bool = Field(True, description="no gradient where code correlations are below 0")
    stabilize: bool = Field(False, description="clamp code correlations at 0.8")


@dataclass(frozen=True)
class Draw:
    """The random choices of one step: positions [B, P, 2] in anchors and partners, negative partners [n, B]."""

    anchor: torch.Tensor
    partner: torch.Tensor
    negatives: torch.Tensor

    def to(self, device: torch.device) -> Draw:
        """Move to a device."""
        return Draw(self.anchor.to(device), self.partner.to(device), self.negatives.to(device))


def draw(
    batch: int,
    settings: CorrespondenceSettings,
    generator: torch.Generator,
    salience: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Draw:
    """Draw positions and negative partners; ``salience`` (bool [B, h, w] of anchors and of positives)
    steers positions.
    """
    points = settings.samples**2
    if salience is None:
        anchor, partner = (uniform_coords(batch, points, generator) for _ in range(2))
    else:
        anchor, partner = (salient_coords(mask, points, generator) for mask in salience)
    pair = published_partners if settings.negative_draw == "published" else derangements
    return Draw(anchor, partner, pair(batch, settings.negatives, generator))


@dataclass(frozen=True)
class Terms:
    """The weighted loss, and its three terms before weighting (0 where a term is absent)."""

    total: torch.Tensor
    intra: torch.Tensor
    inter: torch.Tensor
    negative: torch.Tensor


def centre_rows(correlations: torch.Tensor) -> torch.Tensor:
    """Centre [..., T, B, P, Q] over Q, then restore each T's mean over (B, P, Q).

    Takes away how similar an anchor is to everything ("pointwise").
    """
    # of the batch, so that the loss of a batch is not the mean of its images' losses
    mean = correlations.mean(dim=(-3, -2, -1), keepdim=True)
    return correlations - correlations.mean(dim=-1, keepdim=True) + mean


def pair_losses(
    features: torch.Tensor,
    codes: torch.Tensor,
    shifts: torch.Tensor | None,
    settings: CorrespondenceSettings,
    positives: int,
) -> torch.Tensor:
    """Return one loss for each of T pairings from cosines [T, B, P, Q] of features and of codes: [T].

    ``shifts`` [T] are the fixed shifts. ``None`` asks for EAGLE's automatic ones: |mean fd - mean cd| for
    the first ``positives`` pairings, 3.5 (mean fd + mean cd) for the others.
    """
    with torch.no_grad():
        if settings.pointwise:
            features = centre_rows(features)
    if shifts is None:
        # as published, the gradient goes through the automatic shifts
        feature_mean, code_mean = features.mean(dim=(1, 2, 3)), codes.mean(dim=(1, 2, 3))
        attract = (feature_mean - code_mean).abs()
        repel = AUTO_NEGATIVE_FACTOR * (feature_mean + code_mean)
        shifts = torch.cat([attract[:positives], repel[positives:]])
    lowest = 0.0 if settings.zero_clamp else None
    highest = 0.8 if settings.stabilize else None
    if lowest is not None or highest is not None:
        codes = codes.clamp(min=lowest, max=highest)
    return -(codes * (features - shifts.view(-1, 1, 1, 1))).mean(dim=(1, 2, 3))


def correspondence_loss(
    anchor: View, positive: View | None, grid: tuple[int, int], draw: Draw, settings: CorrespondenceSettings
) -> Terms:
    """Return the correspondence loss of a batch.

    ``positive`` holds a neighbour of each image, or is ``None`` (no inter term). The intra term compares an
    image with itself at the same positions, the inter term with its neighbour, the negative term with
    ``draw.negatives`` at the partner's positions, where there are any (for a batch of one `derangements` draws
    none). Terms of weight 0 are left out.
    """
    batch = len(anchor.features)
    weights_and_shifts: list[tuple[float, float]] = []
    here, here_share = bilinear(draw.anchor, grid)
    there, there_share = bilinear(draw.partner, grid)

    feature = _sampled(anchor, here, here_share)
    code = unit(gather(anchor.codes, here, here_share))
    features, codes = [], []
    if settings.intra_weight:
        features.append(feature)
        codes.append(code)
        weights_and_shifts.append((settings.intra_weight, settings.intra_shift))
    if settings.inter_weight and positive is not None:
        features.append(_sampled(positive, there, there_share))
        codes.append(unit(gather(positive.codes, there, there_share)))
        weights_and_shifts.append((settings.inter_weight, settings.inter_shift))
    positives = len(features)
    negatives = len(draw.negatives) if settings.negative_weight else 0
    if negatives:
        images = draw.negatives.T.flatten()  # anchor by anchor, so that its negatives lie side by side
        repeated, shares = (x.repeat_interleave(negatives, dim=0) for x in (there, there_share))
        features.append(_sampled(anchor, repeated, shares, images).reshape(batch, -1, feature.shape[-1]))
        codes.append(unit(gather(anchor.codes, repeated, shares, images)).reshape(batch, -1, code.shape[-1]))
        weights_and_shifts += [(settings.negative_weight / negatives, settings.negative_shift)] * negatives

    zero = code.sum() * 0
    if not features:
        return Terms(zero, zero.detach(), zero.detach(), zero.detach())
    weights, shifts = torch.tensor(weights_and_shifts, device=code.device).unbind(1)
    with torch.no_grad():
        feature_cosines = correlate(feature, features)
    values = pair_losses(
        feature_cosines,
        correlate(code, codes),
        shifts if settings.shift == "fixed" else None,
        settings,
        positives,
    )
    parts = values.detach()
    has_intra = bool(settings.intra_weight)
    return Terms(
        total=settings.weight * (weights * values).sum(),
        intra=parts[0] if has_intra else zero.detach(),
        inter=parts[positives - 1] if positives > has_intra else zero.detach(),
        negative=parts[positives:].mean() if negatives else zero.detach(),
    )


@torch.no_grad()
def _sampled(
    view: View, indices: torch.Tensor, weights: torch.Tensor, images: torch.Tensor | None = None
) -> torch.Tensor:
    """Return unit features at positions (see `gather`), channels dropped after sampling."""
    sampled = gather(view.features, indices, weights, images)
    if view.mask is not None:
        sampled = sampled * (view.mask if images is None else view.mask[images])
    return unit(sampled)


def correlate(anchor: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
    """Return all dot products of [B, P, D] with T maps, given as parts [B, T_i * P, D]: [T, B, P, P]."""
    products = torch.cat([torch.bmm(anchor, part.transpose(1, 2)) for part in others], dim=2)
    batch, points, _ = anchor.shape
    return products.view(batch, points, -1, points).permute(2, 0, 1, 3)


def standing_out(features: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Return the patches that are less like their image's mean than its average patch: bool [B, h, w]."""
    directions = unit(features)
    # no label is needed; the published code reads its salience from the label map
    likeness = (directions * unit(directions.mean(dim=1, keepdim=True))).sum(-1)
    return (likeness < likeness.mean(dim=1, keepdim=True)).view(-1, *grid)


@OBJECTIVES.register(
    "correspondence",
    summary="codes agree where features do: within an image, with a neighbor, against others (STEGO)",
    facts=ObjectiveFacts(settings=CorrespondenceSettings),
)
class Correspondence(Objective):
    """The correspondence loss on images and their neighbours."""

    def __init__(self, config: RunConfig, channels: int) -> None:
        super().__init__()
        self.settings = config.loss.own(CorrespondenceSettings)
        self.wants_positives = self.needs_neighbours(config)
        self.wants_labels = self.settings.signal == "labels"

    @classmethod
    def conflict(cls, config: RunConfig) -> str | None:
        """Name a draw that nothing uses, and a decoder of features that nobody sees."""
        settings = config.loss.own(CorrespondenceSettings)
        if settings.signal == "labels" and config.loss.reconstruction_weight:
            return "loss.correspondence.signal is 'labels' but loss.reconstruction-weight decodes features; set it to 0"
        if settings.negative_draw == "published" and not settings.negative_weight:
            return (
                "loss.correspondence.negative-draw is 'published' but negative-weight is 0, so that nothing is drawn; "
                "set it to 'derangement'"
            )
        return None

    @classmethod
    def needs_neighbours(cls, config: RunConfig) -> bool:
        """Only the inter term compares with one."""
        return config.loss.own(CorrespondenceSettings).inter_weight > 0

    def forward(self, batch: Batch, head: SegmentationHead, generator: torch.Generator) -> torch.Tensor:
        """Draw positions and partners, compare."""
        salience = None
        if self.settings.salience:
            partner = batch.anchor if batch.positive is None else batch.positive
            sides = (standing_out(view.features, batch.grid).cpu() for view in (batch.anchor, partner))
            salience = (next(sides), next(sides))
        chosen = draw(len(batch.anchor.features), self.settings, generator, salience)
        chosen = chosen.to(batch.anchor.features.device)
        return correspondence_loss(batch.anchor, batch.positive, batch.grid, chosen, self.settings).total
