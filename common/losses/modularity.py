"""Modularity objective: a codebook of communities, then a contrast by it (CAUSE-MLP, arXiv 2310.07379).

Two phases. First a codebook c of M directions in feature space is fitted so that the patches of an image
that share a code are communities of its similarity graph (soft modularity). With A the positive cosines
between patches, no self-loops, d its degrees, e their sum, and m_i the positive cosines of patch i to
the codes,

    loss = - sum_ij (A_ij - d_i d_j / e) / e * max_m tanh(m_i m_j / t).

Then the student (head and projection) is contrasted with a momentum teacher: patches whose codes are
alike are positives, patches whose codes are unlike negatives. The same modularity also fits centroids to
codes (``centroids.local = "modularity"``).
"""

from __future__ import annotations

import copy

import torch
from pydantic import Field
from torch import nn

from common.losses.base import Batch, Objective, unit
from common.models.head import SegmentationHead, frozen_copy, initialise
from common.seeds import torch_generator
from common.settings.objectives import OBJECTIVES, ObjectiveFacts
from common.settings.schema import RunConfig
from common.settings.section import Section
from common.settings.unsupervised import Local

# Temperature inside the tanh
SHARPNESS = 0.1
# Codes of a higher cosine make positives, of a lower one negatives; pairs in between are left out
ALIKE, UNLIKE = 0.3, 0.1
# of the contrast; then the momentum of its teacher, and the keys that are kept of each code
TEMPERATURE = 0.07
TEACHER_MOMENTUM = 0.99
BANK_PER_CODE = 100
# Patches per image whose best shared code is searched at a time, which bounds the memory
CHUNK = 16


class ModularitySettings(Section):
    """Settings ``loss.modularity``."""

    codebook: int = Field(256, ge=2, description="codes in the codebook")
    codebook_rounds: int = Field(1, ge=0, description="rounds that fit the codebook before the head")
    projection: int = Field(128, ge=2, description="length of the vectors that are contrasted")
    cell: int = Field(2, ge=1, description="one patch of every square of this side is looked at")


def modularity_matrix(vectors: torch.Tensor) -> torch.Tensor:
    """Return ``(A - d d^T / e) / e`` of the patches' similarity graph: [B, P, D] -> [B, P, P].

    Rows and columns sum to zero. An image whose patches share no positive cosine has no edge and gives
    zeros.
    """
    directions = unit(vectors)
    graph = (directions @ directions.transpose(1, 2)).clamp(min=0)
    # no self-loops: a patch always agrees with itself
    graph = graph - torch.diag_embed(graph.diagonal(dim1=1, dim2=2))
    degrees = graph.sum(dim=2, keepdim=True)
    edges = degrees.sum(dim=1, keepdim=True).clamp(min=1e-12)
    return (graph - degrees @ (degrees / edges).transpose(1, 2)) / edges


def shared_membership(vectors: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return ``max_m tanh(m_i m_j / t)`` for all pairs of patches: [B, P, D] and [M, D] -> [B, P, P]."""
    # the tanh is monotone: the best code is found on the products, without a gradient and in chunks, and the
    # gradient goes through that code only, as through a maximum
    members = (unit(vectors) @ unit(codes).T).clamp(min=0)
    with torch.no_grad():
        best = torch.cat(
            [
                (part.unsqueeze(2) * members.unsqueeze(1)).argmax(dim=3)
                for part in torch.split(members, CHUNK, dim=1)
            ],
            dim=1,
        )
    own = members.gather(2, best)
    other = members.gather(2, best.transpose(1, 2)).transpose(1, 2)
    return torch.tanh(own * other / SHARPNESS)


def modularity_loss(vectors: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return minus the soft modularity of images' patches [B, P, D] under codes [M, D]; only the codes learn."""
    vectors = vectors.detach()
    with torch.no_grad():
        weights = modularity_matrix(vectors)
    return -(weights * shared_membership(vectors, codes)).sum(dim=(1, 2)).mean()


def contrast(
    student: torch.Tensor, teacher: torch.Tensor, alike: torch.Tensor, excluded: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Return the mean over images of a supervised contrast between student patches and teacher keys.

    student: [B, P, E]; teacher: [N, E]; alike: the cosines of their codes [B, P, N]; excluded: bool [B,
    P, N], pairs that count for nothing. A positive pair costs ``-log( e^s / sum e^s' )`` over all its
    patch's positives and negatives, s the cosine over the temperature. Images without any positive pair
    are left out; ``None`` if all are.
    """
    scores = unit(student) @ unit(teacher).T / TEMPERATURE
    positive, negative = alike > ALIKE, alike < UNLIKE
    if excluded is not None:
        positive, negative = positive & ~excluded, negative & ~excluded
    candidates = scores.masked_fill(~(positive | negative), -torch.inf)
    has_positive = positive.any(dim=2, keepdim=True)
    total = torch.where(has_positive, candidates, torch.zeros_like(candidates)).logsumexp(dim=2, keepdim=True)
    pairs = torch.where(positive, total - scores, torch.zeros_like(scores)).sum(dim=(1, 2))
    counts = positive.sum(dim=(1, 2))
    used = counts > 0
    return (pairs[used] / counts[used]).mean() if bool(used.any()) else None


def one_per_cell(grid: tuple[int, int], side: int, generator: torch.Generator) -> torch.Tensor:
    """Draw one patch from every ``side`` x ``side`` cell of the grid, the same in all images: int64 [P].

    Thins out an image evenly. Cells at the right and lower rim may be smaller.
    """
    height, width = grid
    rows = torch.arange(height)[:, None].expand(grid).flatten()
    columns = torch.arange(width)[None].expand(grid).flatten()
    cell = (rows // side) * -(-width // side) + columns // side
    order = torch.randperm(height * width, generator=generator)
    first: dict[int, int] = {}
    for patch in order.tolist():
        first.setdefault(int(cell[patch]), patch)
    return torch.tensor([first[key] for key in sorted(first)])


@OBJECTIVES.register(
    "modularity",
    summary="a codebook of communities of patches, then codes contrasted by it (CAUSE)",
    facts=ObjectiveFacts(settings=ModularitySettings),
)
class Modularity(Objective):
    """The codebook in the first ``loss.modularity.codebook-rounds`` rounds, the contrast after that.

    Shared state: ``codebook`` [M, C] and the student's ``projection``. Teacher and bank are made anew
    from the received head every round and stay on the site; the published code keeps them for the whole
    training.
    """

    def __init__(self, config: RunConfig, channels: int) -> None:
        super().__init__()
        self.settings = config.loss.own(ModularitySettings)
        generator = torch_generator(config.seed, "modularity")
        count = self.settings.codebook
        self.codebook = nn.Parameter((torch.rand(count, channels, generator=generator) * 2 - 1) / count)
        self.projection = nn.Linear(config.model.dim, self.settings.projection)
        initialise(self.projection, generator)
        self.fitting_codebook = True
        self.teacher: tuple[SegmentationHead, nn.Linear] | None = None
        self.bank: tuple[torch.Tensor, torch.Tensor] | None = None

    def start_round(self, round_number: int, head: SegmentationHead, centroids: torch.Tensor) -> None:
        """Choose the phase; start teacher and bank."""
        self.fitting_codebook = round_number <= self.settings.codebook_rounds
        self.codebook.requires_grad_(self.fitting_codebook)
        self.projection.requires_grad_(not self.fitting_codebook)
        projection = copy.deepcopy(self.projection).requires_grad_(False)
        # a pair, not a submodule, so that it does not travel; in training mode, because the published teacher drops too
        self.teacher = frozen_copy(head).train(), projection
        self.bank = None

    def forward(self, batch: Batch, head: SegmentationHead, generator: torch.Generator) -> torch.Tensor:
        """Fit the codebook to the batch, or contrast student and teacher on patches of the batch."""
        assert self.teacher is not None, "start_round comes first"
        view = batch.anchor
        images = len(view.features)
        chosen = one_per_cell(batch.grid, self.settings.cell, generator).to(view.features.device)
        features, codes = view.features[:, chosen], view.codes[:, chosen]
        if self.fitting_codebook:
            return modularity_loss(features, self.codebook)
        teacher_head, teacher_projection = self.teacher
        with torch.no_grad():
            masks = teacher_head.draw_masks(images, generator)
            keys = unit(teacher_projection(teacher_head.project(features, *masks))).flatten(0, 1)
            directions = unit(self.codebook)
            nearest = (unit(features) @ directions.T).argmax(dim=2)
            likeness = (directions @ directions.T)[nearest]
            in_batch = likeness[:, :, nearest.flatten()]
            itself = torch.eye(len(keys), dtype=torch.bool, device=keys.device).view(in_batch.shape)
        student = self.projection(codes)
        losses = [contrast(student, keys, in_batch, itself)]
        if self.bank is not None:
            losses.append(contrast(student, self.bank[0], likeness[:, :, self.bank[1]]))
        self._remember(keys, nearest.flatten(), generator)
        found = [loss for loss in losses if loss is not None]
        return torch.stack(found).mean() if found else student.sum() * 0

    def after_step(self, head: SegmentationHead) -> None:
        """Let the teacher follow the student."""
        if self.fitting_codebook or self.teacher is None:
            return
        with torch.no_grad():
            for teacher, student in zip(self.teacher, (head, self.projection), strict=True):
                for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                    slow.lerp_(fast, 1 - TEACHER_MOMENTUM)

    def groups(self, local: Local) -> list[dict[str, object]]:
        """Train whatever this round's phase trains (the other part gets no gradient and stays)."""
        return [{"params": [self.codebook, *self.projection.parameters()], "lr": local.lr}]

    def _remember(self, keys: torch.Tensor, codes: torch.Tensor, generator: torch.Generator) -> None:
        """Add a random half of the keys to the bank, which keeps the newest of each code."""
        half = torch.randperm(len(keys), generator=generator)[: len(keys) // 2].to(keys.device)
        keys, codes = keys[half], codes[half]
        if self.bank is not None:
            keys, codes = torch.cat([self.bank[0], keys]), torch.cat([self.bank[1], codes])
        newest_first = codes.flip(0)
        order = newest_first.argsort(stable=True)
        ordered = newest_first[order]
        starts = torch.searchsorted(ordered, ordered)
        rank = torch.arange(len(ordered), device=keys.device) - starts
        kept = (len(codes) - 1 - order[rank < BANK_PER_CODE]).sort().values
        self.bank = keys[kept], codes[kept]
