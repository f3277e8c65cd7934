"""Task `student` at a site: gradient steps on masks that a first stage's clusters made of its own images.

Masks take the place of labels, whose paths are dropped with the manifest. Their certain pixels count as labels do,
weighed by the clusters' frequencies. The others may be labelled by an EMA teacher, as in adaptation
(``teacher.update``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from client.site import SiteConfig
from client.work.adaptation import self_train
from client.work.base import SITE_TASKS
from client.work.masks import UNSURE, make_masks, open_masks
from client.work.network import (
    LocalRound,
    NetworkSite,
    received_network,
    task_classes,
    with_table,
)
from client.work.teachers import collect_teachers
from common import wire
from common.data.classes import IGNORE
from common.data.data_loader import ImageBatch, ImageDataset
from common.data.images import without_labels
from common.data.manifest import Shard
from common.errors import UserError
from common.losses.reductions import labelled_loss
from common.losses.self_training import MEAN, kept_pixels, pseudo_label_loss
from common.models.network import SegmentationNetwork, network_signature
from common.settings.schema import RunConfig
from common.settings.tasks import TASK_FACTS
from common.training.steps import Stepper

_FACTS = TASK_FACTS["student"]

MASK_METRICS = ("loss", "pseudo_label", "prox", "kept", "steps")
"""The metrics of every round; ``kept`` is the share of pixels that were learned from."""


@SITE_TASKS.register(_FACTS.name, summary=_FACTS.summary, facts=_FACTS)
class StudentSite(NetworkSite):
    """Paths of labels are dropped with the manifest, so that nothing after it can open one."""

    def training_shard(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> Shard:
        """Read the manifest and drop the labels."""
        return without_labels(site.load_shard())

    def sums(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Make masks by the first stage's model, and return how many pixels of each cluster are certain."""
        shard = self.training_shard(task, settings, site)
        site.refuse_few_images(len(shard), settings)
        masks = make_masks(task, shard, settings, site)
        return wire.Update(
            site=site.name,
            weights_hash=network_signature(settings.model.clusters, settings.network),
            groups={"masks": {"counts": masks.counts}},
            facts={"images": len(shard)},
        )

    def images(
        self, task: wire.Task, shard: Shard, settings: RunConfig, site: SiteConfig, device: str
    ) -> ImageDataset:
        """Return the images with their masks; `UserError` where there are none, and the server sends its model."""
        masks = open_masks(str(task.options.get("masks", "")), shard, settings, site)
        if masks is None:
            raise UserError("The masks of the first stage do not lie on this site's disk; they will be made.")
        key = (settings.seed, site.name)  # and the epoch
        plain = settings.teacher.view == "plain"
        return ImageDataset(
            shard,
            settings.transforms,
            key,
            False,
            None,
            **site.reading(device),
            plain=plain,
            masks=masks.read,
        )

    def learn(self, local: LocalRound) -> tuple[dict[str, float], tuple[str, ...]]:
        """Train on the masks, or replace the statistics by those of the site's images."""
        teachers = collect_teachers(local.task, local.settings, local.site, local.device)
        if local.measuring:
            local.measure(1.0)
            return {}, teachers.held
        words = str(local.task.options["balance"]).split(",")
        balance = torch.tensor([float(word) for word in words], device=local.device)
        loss = MaskLoss(local.settings, balance, local.crucial(), teachers.teacher)
        stepper = Stepper(local.network, local.settings.sgd, **local.schedule)
        return self_train(local.network, local.batches, loss, stepper), teachers.held

    def sends_weights(self, settings: RunConfig, number: int) -> bool:
        """Tell whether a round changes weights: in one that only measures they are as they came."""
        return not settings.measures(number)

    def evaluate(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Count the received network's clusters against this site's own labelled shard."""
        from common.evaluation.certainty import count_clusters
        from common.evaluation.networks import predict_pixels

        shard = site.load_eval_shard()
        shard = None if shard is None else with_table(shard, settings)
        if shard is None or not shard.labelled or shard.classes is None:
            raise UserError(
                f"{site.name} has no labelled evaluation shard; set eval-shard in its node config, or eval.where."
            )
        network = received_network(task, settings, site.torch_device()).eval()
        found = count_clusters(
            lambda image: predict_pixels(network, image, settings.transforms, flip=settings.eval.flip),
            shard,
            task_classes(task),
        )
        assert found.confusion is not None, "every image has a label"
        return wire.Update(
            site=site.name,
            weights_hash=network_signature(task_classes(task), settings.network),
            groups={"confusion": {"confusion": found.confusion.matrix}},
            facts={"images": found.num_images},
        )


@dataclass
class MaskLoss:
    """The loss of a batch with masks.

    balance: float32 [K], the weight of a pixel of each cluster. crucial: bool [K], for ``reduction.kind`` weighted.
    teacher: labels the pixels that the masks leave out; None: the student itself, where ``teacher.update`` says so.
    """

    config: RunConfig
    balance: Tensor
    crucial: Tensor
    teacher: SegmentationNetwork | None
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MASK_METRICS, 0.0))

    def __call__(self, logits: Tensor, batch: ImageBatch) -> Tensor:
        """Return the weighted sum of both terms for the student's logits [B, K, H, W]."""
        assert batch.labels is not None, "masks are labels"
        settings, inside = self.config.teacher, batch.labels != IGNORE
        certain = torch.where(batch.labels == UNSURE, IGNORE, batch.labels)
        value = labelled_loss(logits, certain, self.config.reduction, self.crucial, self.balance)
        learned = certain != IGNORE
        if settings.weight and (self.teacher is not None or settings.update == "student"):
            said = self._said(logits, batch)
            others = kept_pixels(said, settings.confidence, settings.fraction, inside & ~learned)
            reduction = self.config.reduction if settings.reduce else MEAN
            named = settings.weight * pseudo_label_loss(
                logits, others, settings.denominator, reduction, self.crucial
            )
            value = value + named
            learned = learned | (others != IGNORE)
            self.sums["pseudo_label"] += named.item()
        self.sums["loss"] += value.item()
        self.sums["kept"] += learned.float().mean().item()
        self.sums["steps"] += 1
        return value

    @torch.no_grad()
    def _said(self, logits: Tensor, batch: ImageBatch) -> Tensor:
        if self.teacher is None:
            return logits.detach()
        seen = batch.images if batch.plain is None else batch.plain
        found: Tensor = self.teacher(seen)
        mirror = self.config.teacher.mirror
        return (found + self.teacher(seen.flip(-1)).flip(-1)) / 2 if mirror else found

    def metrics(self) -> dict[str, float]:
        """Return the means over the steps so far."""
        steps = max(self.sums["steps"], 1.0)
        return {name: value / steps for name, value in self.sums.items()} | {"steps": self.sums["steps"]}
