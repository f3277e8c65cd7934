"""Extra terms for any objective that takes steps: reconstruction, alignment, contrastive CRF (options of STEGO)."""

from __future__ import annotations

import torch
from torch import nn

from common.losses.base import Batch, Objective, objective_class, unit
from common.losses.sampling import bilinear, gather
from common.models.head import SegmentationHead, initialise
from common.seeds import torch_generator
from common.settings.objectives import Loss
from common.settings.schema import RunConfig
from common.settings.unsupervised import Local

# The published term works on maps of 56 x 56 and measures distances in their pixels; here the shorter side counts so
CRF_SIDE = 56
# Colours enter as the published code has them, normalised as for ImageNet
COLOUR_MEAN, COLOUR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def reconstruction_loss(codes: torch.Tensor, features: torch.Tensor, decoder: nn.Module) -> torch.Tensor:
    """Return minus the mean cosine between decoded codes [B, n, D] and features [B, n, C]."""
    return -(unit(decoder(codes)) * unit(features)).sum(dim=-1).mean()


def crf_kernel(positions: torch.Tensor, colours: torch.Tensor, settings: Loss) -> torch.Tensor:
    """Return how alike pixels should be labelled, by position [P, 2] and colour [B, P, 3]: [B, P, P].

    ``w1 exp(-|dx|^2 / 2 alpha - |dI|^2 / 2 beta) + w2 exp(-|dx|^2 / 2 gamma) - shift``.
    """
    apart = (positions[:, None] - positions[None]).square().sum(dim=-1)
    contrast = (colours[:, :, None] - colours[:, None]).square().sum(dim=-1)
    appearance = torch.exp(-apart / (2 * settings.crf_alpha) - contrast / (2 * settings.crf_beta))
    closeness = torch.exp(-apart / (2 * settings.crf_gamma))
    return settings.crf_appearance * appearance + settings.crf_closeness * closeness - settings.crf_shift


def contrastive_crf_loss(codes: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Return minus the mean product of code cosines and kernel: codes [B, P, D], kernel [B, P, P]."""
    directions = unit(codes)
    return -((directions @ directions.transpose(1, 2)) * kernel).mean()


def alignment_loss(
    codes: torch.Tensor, augmented: torch.Tensor, coords: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor:
    """Return minus the mean cosine between an augmented image's codes and the original's at the same places.

    codes, augmented: [B, n, D]; coords: [B, n, 2], where in the original each patch of the augmented
    image lies.
    """
    here = gather(codes, *bilinear(coords, grid))
    return -(unit(here) * unit(augmented)).sum(dim=-1).mean()


class WithExtras(Objective):
    """An objective plus the extra terms of positive weight.

    The state is the main objective's under ``main.`` and the decoder of the reconstruction under
    ``decoder.``.
    """

    def __init__(self, main: Objective, settings: RunConfig, channels: int) -> None:
        super().__init__()
        self.main = main
        self.settings = settings.loss
        self.decoder: nn.Linear | None = None
        if self.settings.reconstruction_weight:
            self.decoder = nn.Linear(settings.model.dim, channels)
            initialise(self.decoder, torch_generator(settings.seed, "decoder"))
        self.wants_positives = main.wants_positives
        self.wants_labels = main.wants_labels
        self.wants_colours = main.wants_colours or self.settings.crf_weight > 0
        self.wants_augmented = main.wants_augmented or self.settings.augmentation_weight > 0

    def start_round(self, round_number: int, head: SegmentationHead, centroids: torch.Tensor) -> None:
        """Pass on."""
        self.main.start_round(round_number, head, centroids)

    def forward(self, batch: Batch, head: SegmentationHead, generator: torch.Generator) -> torch.Tensor:
        """Add the weighted terms to the main loss."""
        loss: torch.Tensor = self.main(batch, head, generator)
        view = batch.anchor
        if self.decoder is not None:
            term = reconstruction_loss(view.codes, view.dropped, self.decoder)
            loss = loss + self.settings.reconstruction_weight * term
        if self.settings.augmentation_weight:
            assert batch.augmented is not None, "asked for by wants_augmented"
            other, coords = batch.augmented
            loss = loss + self.settings.augmentation_weight * alignment_loss(
                view.codes, other.codes, coords, batch.grid
            )
        if self.settings.crf_weight:
            loss = loss + self.settings.crf_weight * self._crf(batch, generator)
        return loss

    def _crf(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        assert batch.colours is not None, "asked for by wants_colours"
        height, width = batch.grid
        device = batch.colours.device
        chosen = torch.randperm(height * width, generator=generator)[: self.settings.crf_samples].to(device)
        scale = CRF_SIDE / min(height, width)
        positions = torch.stack([chosen // width, chosen % width], dim=1) * scale
        mean, std = (torch.tensor(values, device=device) for values in (COLOUR_MEAN, COLOUR_STD))
        kernel = crf_kernel(positions, (batch.colours[:, chosen] - mean) / std, self.settings)
        return contrastive_crf_loss(batch.anchor.codes[:, chosen], kernel)

    def after_step(self, head: SegmentationHead) -> None:
        """Pass on."""
        self.main.after_step(head)

    def groups(self, local: Local) -> list[dict[str, object]]:
        """Join the main objective's groups and the decoder's."""
        own = [] if self.decoder is None else [{"params": list(self.decoder.parameters()), "lr": local.lr}]
        return [*self.main.groups(local), *own]

    def centroids(self) -> torch.Tensor | None:
        """Pass on."""
        return self.main.centroids()


def build_objective(config: RunConfig, channels: int) -> Objective:
    """Build an objective that takes steps, with its extra terms; its starting state follows from the seed alone.

    Raises ValueError for one in closed form, which has nothing to train.
    """
    kind = objective_class(config)
    if not issubclass(kind, Objective):
        raise ValueError(
            f"Objective '{config.loss.objective}' is fitted from sums; it does not train by steps."
        )
    main = kind(config, channels)
    loss = config.loss
    extras = loss.reconstruction_weight or loss.augmentation_weight or loss.crf_weight
    return WithExtras(main, config, channels) if extras else main
