"""Task `adaptation` at a site: self-training, in which a teacher labels the pixels of images without labels.

Only pixels of which the teacher is sure count (Shenaj et al., WACV 2023, after class-balanced self-training). The
teacher sees the very pixels that the student sees, as published. With ``teacher.view`` "plain" it sees the same cut in
its own colors while the student's are changed (Sohn et al., FixMatch, 2020). Padding and turned corners are no part of
the image: they are never believed. They count in no share or mean of pixels but ``kept`` and what is divided by all
pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from client.site import SiteConfig
from client.work.base import SITE_TASKS
from client.work.network import LocalRound, NetworkSite, with_table
from client.work.teachers import collect_teachers
from common import wire
from common.data.classes import IGNORE
from common.data.data_loader import ImageBatch, ImageDataset
from common.data.images import without_labels
from common.data.manifest import Shard
from common.losses.reductions import max_square_loss
from common.losses.self_training import (
    MEAN,
    distillation_loss,
    entropy_loss,
    kept_pixels,
    pseudo_label_loss,
)
from common.models.network import SegmentationNetwork
from common.settings.schema import RunConfig
from common.settings.tasks import TASK_FACTS
from common.training.steps import Stepper

# the metrics of every round, whatever the settings: sites' figures can be averaged name by name
METRICS = (
    "loss",  # mean over the steps, of everything that trains the network
    "pseudo_label",  # thereof the loss on the teacher's labels
    "distillation",  # thereof staying close to the pretrained network
    "entropy",  # thereof the entropy of the predictions
    "max_square",  # thereof their squared probabilities
    "prox",  # beside it, FedProx
    "kept",  # share of the pixels that were believed
    "steps",
)
# what the loss is the sum of
TERMS = ("pseudo_label", "distillation", "entropy", "max_square")

_FACTS = TASK_FACTS["adaptation"]


@SITE_TASKS.register(_FACTS.name, summary=_FACTS.summary, facts=_FACTS)
class AdaptationSite(NetworkSite):
    """Paths of labels are dropped with the manifest, so that nothing after it can open one."""

    def training_shard(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> Shard:
        """Read the manifest and drop the labels."""
        return without_labels(with_table(site.load_shard(), settings))

    def images(
        self, task: wire.Task, shard: Shard, settings: RunConfig, site: SiteConfig, device: str
    ) -> ImageDataset:
        """Return the images, and as the teacher sees them where that differs from the student."""
        key = (settings.seed, site.name)  # and the epoch
        plain = settings.teacher.view == "plain"
        return ImageDataset(shard, settings.transforms, key, False, None, **site.reading(device), plain=plain)

    def learn(self, local: LocalRound) -> tuple[dict[str, float], tuple[str, ...]]:
        """Train on what the teacher is sure of, or move the statistics towards those of the site's images."""
        settings = local.settings
        teachers = collect_teachers(local.task, settings, local.site, local.device)
        if local.measuring:
            local.measure(settings.network.site_statistics)
            return {}, teachers.held  # there is no loss to report
        loss = AdaptationLoss(settings, teachers.teacher, teachers.pretrained, local.crucial())
        stepper = Stepper(local.network, settings.sgd, **local.schedule)
        return self_train(local.network, local.batches, loss, stepper), teachers.held


@dataclass
class AdaptationLoss:
    """The loss of a batch of unlabelled images.

    teacher: labels the pixels; None: the student does it itself. pretrained: what distillation stays close to.
    crucial: bool [C], for ``reduction.kind`` weighted.
    """

    config: RunConfig
    teacher: nn.Module | None
    pretrained: nn.Module | None
    crucial: Tensor | None = None
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(METRICS, 0.0))

    def __call__(self, logits: Tensor, batch: ImageBatch) -> Tensor:
        """Return the weighted sum of all terms for the student's logits [B, C, H, W]."""
        settings = self.config.teacher
        seen = batch.images if batch.plain is None else batch.plain
        said = logits.detach() if self.teacher is None else self.logits(self.teacher, seen)
        labels = self.believed(said, batch)
        reduction = self.config.reduction if settings.reduce else MEAN
        named = pseudo_label_loss(logits, labels, settings.denominator, reduction, self.crucial)
        terms = {"pseudo_label": settings.weight * named}
        if settings.distill_weight and self.pretrained is not None:
            first = said if self.pretrained is self.teacher else self.logits(self.pretrained, seen)
            mask = (labels if first is said else self.believed(first, batch)) != IGNORE
            distilled = distillation_loss(logits, first, settings.distill_alpha, mask)
            terms["distillation"] = settings.distill_weight * distilled
        if settings.entropy_weight:
            terms["entropy"] = settings.entropy_weight * entropy_loss(logits, batch.valid)
        if settings.max_square_weight:
            terms["max_square"] = settings.max_square_weight * max_square_loss(logits, valid=batch.valid)
        for name, term in terms.items():
            self.sums[name] += term.item()
        self.sums["kept"] += (labels != IGNORE).float().mean().item()
        self.sums["steps"] += 1
        return torch.stack(list(terms.values())).sum()

    def believed(self, logits: Tensor, batch: ImageBatch) -> Tensor:
        """Return the labels of sure pixels, int64 [B, H, W], 255 elsewhere."""
        settings = self.config.teacher
        return kept_pixels(logits, settings.confidence, settings.fraction, batch.valid)

    @torch.no_grad()
    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return a frozen network's logits, averaged over the image and its mirror image if so set."""
        found: Tensor = network(images)
        return (found + network(images.flip(-1)).flip(-1)) / 2 if self.config.teacher.mirror else found

    def metrics(self) -> dict[str, float]:
        """Return the means over the steps so far."""
        steps = max(self.sums["steps"], 1.0)
        means = {name: value / steps for name, value in self.sums.items() if name != "steps"}
        means["loss"] = sum(means[name] for name in TERMS)
        return means | {"steps": self.sums["steps"]}


class BatchLoss(Protocol):
    """A loss that remembers what it said, for the metrics of a round."""

    def __call__(self, logits: Tensor, batch: ImageBatch) -> Tensor:
        """Return a scalar for logits [B, C, H, W]."""

    def metrics(self) -> dict[str, float]:
        """Return the means over the steps so far."""


def self_train(
    student: SegmentationNetwork, batches: Iterable[ImageBatch], loss: BatchLoss, stepper: Stepper
) -> dict[str, float]:
    """Train the student on all batches and return the metrics of the round.

    Raises ValueError where the loss stops being finite.
    """
    for batch in stepper.clock.waited(batches):
        with stepper.autocast():
            logits = student(batch.images)
            value = loss(logits, batch)
        stepper.step(value, batch.images)
    prox = {"prox": stepper.prox / max(stepper.taken, 1)}
    return loss.metrics() | prox | stepper.clock.metrics()
