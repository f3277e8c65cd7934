"""Objectives: what one has to offer to the local trainer, or to the sums of all sites.

An objective is one file of this folder. It registers itself in `common.settings.objectives.OBJECTIVES` with its facts
and its own settings; nothing else lists it. `Objective` takes gradient steps, `ClosedForm` is solved from sums.
The arithmetic lives in pure functions beside the class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from common.features.source import Features
from common.models.head import SegmentationHead, channel_mask
from common.settings.objectives import OBJECTIVES
from common.settings.schema import RunConfig
from common.settings.unsupervised import Local

NamedArrays = Mapping[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]
ShapesOf = Mapping[str, tuple[int, ...]]
Sums = Mapping[str, NDArray[np.float64]]

# kinds of rounds that the task knows itself: gradient steps, and one pass of exact k-means
TRAIN, CLUSTERS = "train", "clusters"
# norms below this count as this, as in the published code
EPSILON = 1e-10


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Scale the last axis to length 1."""
    return functional.normalize(vectors, dim=-1, eps=EPSILON)


def cosine_cluster_loss(codes: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Return ``- mean_i max_k <n(z_i), n(mu_k)>`` over codes [M, D] and centroids [K, D]: STEGO's cluster probe.

    Only the centroids learn: codes are detached. A centroid that wins no code gets no gradient.
    """
    with torch.no_grad():
        directions = unit(codes.detach())
        assignment = (directions @ unit(centroids).T).argmax(dim=1)
        # given the assignment the loss is linear in n(mu), so that the graph holds K x D numbers (the summed unit
        # codes of each cluster) instead of M x K
        sums = torch.zeros_like(centroids).index_add_(0, assignment, directions)
    return -(sums * unit(centroids)).sum() / len(codes)


@dataclass(frozen=True)
class View:
    """Images as a loss sees them: features [B, n, C], codes [B, n, D], and the channels features keep [B, 1, C].

    All are token-major, n = h*w patches row by row.
    """

    features: torch.Tensor
    codes: torch.Tensor
    # The published code shows the loss channel-dropped features: the third mask of a head call, independent of
    # the two inside the head. It is kept apart, because a mask commutes with sampling: after sampling it costs a
    # fraction.
    mask: torch.Tensor | None = None

    @classmethod
    def of(cls, tokens: torch.Tensor, head: SegmentationHead, generator: torch.Generator | None) -> View:
        """Project tokens [B, n, C] with the head's own dropout and draw the third mask."""
        codes = head.project(tokens, *head.draw_masks(len(tokens), generator))
        dropout = head.dropout if head.training else 0.0
        mask = channel_mask(len(tokens), head.channels, dropout, generator)
        return cls(tokens, codes, None if mask is None else mask.to(tokens.device))

    @property
    def dropped(self) -> torch.Tensor:
        """The features with their channels dropped: [B, n, C]."""
        return self.features if self.mask is None else self.features * self.mask


@dataclass(frozen=True)
class Batch:
    """What one step is about.

    anchor: the images; positive: a neighbour of each, or ``None`` where none was asked for or the shard
    has no second image; grid: (h, w); colours: [B, n, 3] in 0..1, the mean colour of each patch, for
    objectives that ask.
    """

    anchor: View
    positive: View | None
    grid: tuple[int, int]
    colours: torch.Tensor | None = None
    augmented: tuple[View, torch.Tensor] | None = None


class ObjectiveRules:
    """What settings are asked for an objective before there is one."""

    @classmethod
    def conflict(cls, config: RunConfig) -> str | None:
        """Return why settings do not go with this objective, a sentence without its full stop, or None."""
        return None

    @classmethod
    def needs_neighbours(cls, config: RunConfig) -> bool:
        """Say whether a step compares an image with a neighbour of it."""
        return False


class Objective(nn.Module, ObjectiveRules):
    """Base of the objectives that take gradient steps: turns a batch and the head into a loss.

    The trainer knows batches, optimizers and rounds; an objective knows the loss. It is made from all settings and
    the number of feature channels, and its starting state follows from the seed alone. What it holds beyond
    the head (prototypes, a codebook, a decoder) are its own named parameters and buffers.
    The state of the module is the objective's shared state, averaged over the sites beside the head;
    what is private to a site or lasts one round only is a plain attribute, made in `start_round`.
    """

    wants_positives: bool = False
    wants_colours: bool = False
    wants_augmented: bool = False
    wants_labels: bool = False
    """Whether views show the shares of true classes in place of features: a ceiling, not a way to train."""

    def start_round(self, round_number: int, head: SegmentationHead, centroids: torch.Tensor) -> None:
        """Prepare for a round that starts with this head and these centroids [K, D]."""

    def forward(self, batch: Batch, head: SegmentationHead, generator: torch.Generator) -> torch.Tensor:
        """Return the loss of a batch; all random choices come from ``generator`` (on the CPU)."""
        raise NotImplementedError

    def after_step(self, head: SegmentationHead) -> None:
        """Update what follows the parameters without a gradient, for example a momentum copy."""

    def groups(self, local: Local) -> list[dict[str, object]]:
        """Return Adam's parameter groups for the objective's own parameters."""
        own = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": own, "lr": local.lr}] if own else []

    def centroids(self) -> torch.Tensor | None:
        """Return the centroids [K, D] that this objective keeps itself, or ``None``: then the trainer fits them."""
        return None


class ClosedForm(ABC, ObjectiveRules):
    """Base of the objectives that are solved from sums over all images of all sites, without a step.

    The first round adds the sums up and solves for the head and the first centroids; every later one is a pass of
    exact k-means. ``kind`` names that first round, and the group of arrays in which a site sends its sums. With noise
    the sums of a round are one vector, hence one release; `ObjectiveFacts.clips` names the bound of an image's part.
    """

    kind: ClassVar[str]

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @abstractmethod
    def site(self, features: Features) -> dict[str, np.ndarray]:
        """Return what a site sends in the first round; raises ValueError for features that do not do."""

    @abstractmethod
    def image_sums(self, features: Features) -> Iterator[dict[str, NDArray[np.float64]]]:
        """Yield each image's part of the sums, in the form of `noisy_shapes`, for bounds and noise."""

    @abstractmethod
    def merge(self, parts: Sequence[NamedArrays]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the head's arrays and the first centroids [K, D] from what sites sent, in the order given.

        Raises ValueError where there is no solution.
        """

    @abstractmethod
    def denoise(self, sums: Sums, units: int, patches: int, deviation: float) -> dict[str, np.ndarray]:
        """Return, in the form of `site`, a total of ``units`` vectors of bounded length over ``patches`` patches.

        ``deviation`` is that of the noise on every number.
        """

    @staticmethod
    @abstractmethod
    def shapes(channels: int) -> Shapes:
        """Return the shapes of what `site` returns, for features of C channels."""

    @staticmethod
    @abstractmethod
    def noisy_shapes(plain: ShapesOf) -> Shapes:
        """Return the shapes of what `image_sums` yields, from those of what `site` returns."""

    @classmethod
    def packed_shapes(cls, plain: ShapesOf) -> Shapes:
        """Return the shapes of what `pack` returns, from those of what `site` returns."""
        # ones, because sums may be divided by a count
        packed = cls.pack({name: np.ones(shape) for name, shape in plain.items()})
        return {name: array.shape for name, array in packed.items()}

    @staticmethod
    @abstractmethod
    def pack(arrays: NamedArrays) -> dict[str, np.ndarray]:
        """Return what adds up over sites, from what `site` returned."""

    @staticmethod
    @abstractmethod
    def unpack(sums: NamedArrays) -> dict[str, np.ndarray]:
        """Undo `pack`, in float64: a total is not rounded a second time."""

    @staticmethod
    @abstractmethod
    def largest(patches: float, feature: float) -> dict[str, float]:
        """Return bounds on the magnitude of each packed array, for features of that magnitude at most."""


def objective_class(config: RunConfig) -> type[Objective] | type[ClosedForm]:
    """Return the class that the settings name."""
    found: type[Objective] | type[ClosedForm] = OBJECTIVES.get(config.loss.objective)
    return found


def closed_form(config: RunConfig) -> ClosedForm | None:
    """Return the objective if it is solved from sums, None if it takes steps."""
    kind = objective_class(config)
    return kind(config) if issubclass(kind, ClosedForm) else None


def clipping_bound(config: RunConfig) -> float:
    """Return the largest norm of what the objective sends of a site's, or an image's, own; noise goes by it."""
    return float(getattr(config.privacy, config.loss.facts.clips[0]))


def sums_form(group: str) -> type[ClosedForm] | None:
    """Return the closed form whose sums travel under this name, or None for groups of other kinds."""
    return next((e.value for e in OBJECTIVES.entries() if not e.facts.steps and e.value.kind == group), None)
