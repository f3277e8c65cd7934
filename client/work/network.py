"""What sites of the tasks that train a whole network have in common."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from client.site import SiteConfig
from client.work.base import SiteTask
from common import wire
from common.data.classes import ClassTable, known_table
from common.data.data_loader import ImageBatch, ImageDataset
from common.data.images import entry_image
from common.data.manifest import Shard
from common.errors import UserError
from common.models.network import (
    SegmentationNetwork,
    build_network,
    load_arrays,
    network_signature,
    network_to_arrays,
)
from common.seeds import derive
from common.settings.schema import RunConfig
from common.styles.style import style_kind, style_of
from common.training.batchnorm import blend_statistics, whole_images
from common.training.steps import Anchor, Stepper


def task_classes(task: wire.Task) -> int:
    """Return the number of classes that the server trains."""
    return int(task.options.get("classes", 0))


def unlabelled(shard: Shard) -> Shard:
    """Return a shard whose entries name no label, so that nothing after it can open one."""
    return replace(shard, entries=tuple(replace(entry, label=None) for entry in shard.entries))


def with_table(shard: Shard, settings: RunConfig) -> Shard:
    """Return a shard that knows its classes: by its ``partition.json``, else by a name in the run's settings."""
    return shard if shard.classes is not None else replace(shard, classes=known_table(settings.eval.classes))


def check_classes(table: ClassTable, task: wire.Task, site: str) -> None:
    """Refuse labels that mean something else than the server's: another number, or other names, of classes."""
    classes, names = task_classes(task), str(task.options.get("class-names", ""))
    if table.num_classes != classes:
        raise UserError(
            f"{site} has labels of {table.num_classes} classes ({table.name}), the server trains {classes}; use the "
            "same class table."
        )
    if names and list(table.names) != json.loads(names):
        ours, theirs = next((a, b) for a, b in zip(table.names, json.loads(names), strict=True) if a != b)
        raise UserError(
            f"{site} calls a class '{ours}' ({table.name}) that the server calls '{theirs}'; use the same class table."
        )


def received_network(task: wire.Task, settings: RunConfig, device: str) -> SegmentationNetwork:
    """Build the network of the message."""
    blank = settings.network.model_copy(update={"weights": "random"})  # every array is replaced
    network = build_network(task_classes(task), blank, settings.seed)
    load_arrays(network, task.groups["weights"], task.groups["statistics"])
    return network.to(device)


@dataclass(frozen=True)
class Schedule:
    """Where a round's steps lie in the run, and what holds them back (see `network_training.Stepper`)."""

    steps: int
    first_step: int
    total_steps: int
    seed: int
    freeze: str
    anchor: Anchor | None
    clip_norm: float

    def stepper(self, network: SegmentationNetwork, settings: RunConfig) -> Stepper:
        """Return what takes the steps of this round."""
        return Stepper(
            network,
            settings.sgd,
            first_step=self.first_step,
            total_steps=self.total_steps,
            seed=self.seed,
            freeze=self.freeze,
            anchor=self.anchor,
            clip_norm=self.clip_norm,
        )


def schedule_of(task: wire.Task, settings: RunConfig, site: SiteConfig, per_epoch: int) -> Schedule:
    """Return the schedule of a round of a site that needs ``per_epoch`` steps to see all of its images."""
    local = settings.local
    steps = local.steps or local.epochs * per_epoch
    first, last = int(settings.measures(1)), int(settings.measures(settings.rounds))
    return Schedule(
        steps=steps,
        first_step=max(task.round - 1 - first, 0) * steps,
        total_steps=max(settings.rounds - first - last, 1) * steps,
        seed=derive(settings.seed, "train", site.name, task.round),
        freeze=settings.network.freeze,
        anchor=Anchor(local.prox_mu, task.groups["weights"]) if local.prox_mu else None,
        clip_norm=local.clip_norm,
    )


def crucial_of(task: wire.Task, network: SegmentationNetwork) -> torch.Tensor:
    """Return which classes the server calls crucial, bool [C] on the network's device."""
    crucial = torch.zeros(task_classes(task), dtype=torch.bool)
    crucial[[int(index) for index in str(task.options.get("crucial", "")).split(",") if index]] = True
    return crucial.to(network.mean.device)


def measure_statistics(
    network: SegmentationNetwork, shard: Shard, settings: RunConfig, device: str, share: float
) -> dict[str, float]:
    """Move the batch norms of the network by ``share`` towards the site's images; there is no loss to report."""
    blend_statistics(network, whole_images(shard, settings.transforms, device), share)
    return {}


@dataclass(frozen=True)
class LocalRound:
    """What a site has at hand in a round: the received network on ``device``, its images, and its schedule."""

    task: wire.Task
    settings: RunConfig
    site: SiteConfig
    device: str
    shard: Shard
    network: SegmentationNetwork
    batches: Iterator[ImageBatch]
    schedule: Schedule

    @property
    def measuring(self) -> bool:
        """Whether the round takes no step and measures batch norm statistics."""
        return self.settings.measures(self.task.round)


class NetworkSite(SiteTask, ABC):
    """A site that trains a whole network; see `client.work.base.SiteTask`."""

    @abstractmethod
    def training_shard(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> Shard:
        """Read the manifest and check that it serves the task."""

    @abstractmethod
    def images(self, shard: Shard, settings: RunConfig, site: SiteConfig, device: str) -> ImageDataset:
        """Return the images that the site trains on."""

    @abstractmethod
    def learn(self, local: LocalRound) -> tuple[dict[str, float], tuple[str, ...]]:
        """Train the network; returns the metrics of the round, and the hashes of networks that stay on disk."""

    def hello(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Tell this site's name, size and architecture."""
        classes = task_classes(task)
        shard = self.training_shard(task, settings, site)
        return wire.Update(
            site=site.name,
            weights_hash=network_signature(classes, settings.network),
            facts={
                "images": len(shard),
                "channels": classes,
                "grid-height": settings.transforms.height,
                "grid-width": settings.transforms.width,
            },
        )

    def style(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Return this site's style: a few numbers, the mean over its images."""
        shard = unlabelled(site.load_shard())
        images = (entry_image(shard, index) for index in range(len(shard)))
        return wire.Update(
            site=site.name,
            weights_hash=network_signature(task_classes(task), settings.network),
            groups={"style": {"style": style_of(images, style_kind(settings.style))}},
            facts={"images": len(shard)},
        )

    def train(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Train the received network for a round, or measure its statistics."""
        device = site.torch_device()
        shard = self.training_shard(task, settings, site)
        images = self.images(shard, settings, site, device)
        network = received_network(task, settings, device)
        per_epoch = math.ceil(len(images) / settings.local.batch)
        schedule = schedule_of(task, settings, site, per_epoch)
        # a site goes on where its own last round stopped, which the server counts: its memory survives a resumed run
        skip = int(task.options.get("trained", 0)) * schedule.steps
        batches = images.batches(schedule.steps, settings.local.batch, skip=skip)
        metrics, held = self.learn(
            LocalRound(task, settings, site, device, shard, network, batches, schedule)
        )
        weights, statistics = network_to_arrays(network)
        return wire.Update(
            site=site.name,
            weights_hash=network_signature(task_classes(task), settings.network),
            groups={"weights": weights, "statistics": statistics},
            metrics=metrics,
            facts={"images": len(images), "batches": per_epoch, wire.HOLDS: ",".join(held)},
        )

    def evaluate(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Score the received network on this site's own labelled shard: counts leave, nothing else."""
        from common.evaluation.networks import evaluate_network  # sites that score nothing do without

        shard = site.load_eval_shard()
        shard = None if shard is None else with_table(shard, settings)
        if shard is None or not shard.labelled or shard.classes is None:
            raise UserError(
                f"{site.name} has no labelled evaluation shard; set eval-shard in its node config, or eval.where."
            )
        check_classes(shard.classes, task, site.name)
        network = received_network(task, settings, site.torch_device()).eval()
        found = evaluate_network(
            lambda _: network, shard, shard.classes, settings.transforms, flip=settings.eval.flip
        )
        return wire.Update(
            site=site.name,
            weights_hash=network_signature(task_classes(task), settings.network),
            groups={"confusion": {"confusion": found.confusion.matrix}},
            facts={"images": found.num_images},
        )
