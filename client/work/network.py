"""What sites of the tasks that train a whole network have in common."""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypedDict

import torch

from client.site import SiteConfig
from client.work.base import SiteTask
from client.work.kept_network import KeptNetwork
from common import wire
from common.data.classes import ClassTable, known_table
from common.data.data_loader import ImageBatch, ImageDataset
from common.data.images import entry_image, without_labels
from common.data.manifest import Shard
from common.errors import UserError
from common.models.differences import SHOWN
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
from common.training.clock import SECONDS
from common.training.steps import Anchor


def task_classes(task: wire.Task) -> int:
    """Return the number of classes that the server trains."""
    return int(task.options.get("classes", 0))


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


def blank_network(task: wire.Task, settings: RunConfig) -> SegmentationNetwork:
    """Build a network of the run's kind whose arrays are all to be replaced."""
    blank = settings.network.model_copy(update={"weights": "random"})  # a site reads no file of weights
    return build_network(task_classes(task), blank, settings.seed)


def received_network(task: wire.Task, settings: RunConfig, device: str) -> SegmentationNetwork:
    """Build the network of the message."""
    network = blank_network(task, settings)
    load_arrays(network, task.groups["weights"], task.groups["statistics"])
    return network.to(device)


class Schedule(TypedDict):
    """Where a round's steps lie in the run, and what holds them back: arguments of `Stepper`."""

    first_step: int
    total_steps: int
    seed: int
    freeze: str
    anchor: Anchor | None
    clip_norm: float


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
    steps: int

    @property
    def schedule(self) -> Schedule:
        """Where the steps of the round lie in the run."""
        settings, local = self.settings, self.settings.local
        # rounds that only measure statistics take no step, and so no part of the learning rate's course
        first, last = int(settings.measures(1)), int(settings.measures(settings.rounds))
        return Schedule(
            first_step=max(self.task.round - 1 - first, 0) * self.steps,
            total_steps=max(settings.rounds - first - last, 1) * self.steps,
            seed=derive(settings.seed, "train", self.site.name, self.task.round),
            freeze=settings.network.freeze,
            anchor=Anchor(local.prox_mu, self.task.groups["weights"]) if local.prox_mu else None,
            clip_norm=local.clip_norm,
        )

    @property
    def measuring(self) -> bool:
        """Whether the round takes no step and measures batch norm statistics."""
        return self.settings.measures(self.task.round)

    def measure(self, share: float) -> None:
        """Move the batch norms of the network by ``share`` towards the site's images."""
        images = whole_images(self.shard, self.settings.transforms, self.device)
        blend_statistics(self.network, images, share)

    def crucial(self) -> torch.Tensor:
        """Return which classes the server calls crucial, bool [C] on the network's device."""
        crucial = torch.zeros(task_classes(self.task), dtype=torch.bool)
        named = str(self.task.options.get("crucial", ""))
        crucial[[int(index) for index in named.split(",") if index]] = True
        return crucial.to(self.network.mean.device)


class NetworkSite(SiteTask, ABC):
    """A site that trains a whole network; see `client.work.base.SiteTask`."""

    @abstractmethod
    def training_shard(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> Shard:
        """Read the manifest and check that it serves the task."""

    @abstractmethod
    def images(
        self, task: wire.Task, shard: Shard, settings: RunConfig, site: SiteConfig, device: str
    ) -> ImageDataset:
        """Return the images that the site trains on."""

    @abstractmethod
    def learn(self, local: LocalRound) -> tuple[dict[str, float], tuple[str, ...]]:
        """Train the network; returns the metrics of the round, and the hashes of networks that stay on disk."""

    def hello(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Tell this site's name, size and architecture."""
        shard = self.training_shard(task, settings, site)
        facts: wire.Options = {
            "images": len(shard),
            "channels": task_classes(task),
            "grid-height": settings.transforms.height,
            "grid-width": settings.transforms.width,
        }
        return _update_of(task, settings, site, facts)

    def style(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Return this site's style: a few numbers, the mean over its images."""
        shard = without_labels(site.load_shard())
        images = (entry_image(shard, index) for index in range(len(shard)))
        style = style_of(images, style_kind(settings.style))
        return _update_of(task, settings, site, {"images": len(shard)}, {"style": {"style": style}})

    def train(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Train the received network for a round, or measure its statistics."""
        began = time.perf_counter()
        device, local = site.torch_device(), settings.local
        shard = self.training_shard(task, settings, site)
        images = self.images(task, shard, settings, site, device)
        kept = KeptNetwork(task, settings, site, task.round)
        task = kept.received()
        network = received_network(task, settings, device)
        per_epoch = math.ceil(len(images) / local.batch)
        steps = local.steps or local.epochs * per_epoch
        # a site goes on where its own last round stopped, which the server counts: its memory survives a resumed run
        skip = int(task.options.get("trained", 0)) * steps
        batches = images.batches(steps, local.batch, skip=skip)
        metrics, held = self.learn(LocalRound(task, settings, site, device, shard, network, batches, steps))
        weights, statistics = network_to_arrays(network)
        facts: wire.Options = {"images": len(images), "batches": per_epoch, wire.HOLDS: ",".join(held)}
        groups: wire.Groups = {"weights": weights, "statistics": statistics}
        if settings.network_stays:
            kept.keep_own(weights, statistics)
            groups = groups if task.options.get("phase") == SHOWN else {}
        else:  # weights first, as they always came
            del groups["weights"]
            if self.sends_weights(settings, task.round):
                travelling, known = kept.reply(task, weights)
                groups, facts = travelling | groups, facts | known
        metrics = metrics | {f"{SECONDS}site": time.perf_counter() - began}
        return replace(_update_of(task, settings, site, facts, groups), metrics=metrics)

    def sends_weights(self, settings: RunConfig, number: int) -> bool:
        """Tell whether the reply to a round holds weights."""
        return True

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
        # a network that stays is scored as the round has left it
        task = (
            KeptNetwork(task, settings, site, task.round + 1).received() if settings.network_stays else task
        )
        network = received_network(task, settings, site.torch_device()).eval()
        found = evaluate_network(
            lambda _: network, shard, shard.classes, settings.transforms, flip=settings.eval.flip
        )
        counts = {"confusion": {"confusion": found.confusion.matrix}}
        return _update_of(task, settings, site, {"images": found.num_images}, counts)


def _update_of(
    task: wire.Task,
    settings: RunConfig,
    site: SiteConfig,
    facts: wire.Options,
    groups: wire.Groups | None = None,
) -> wire.Update:
    signature = network_signature(task_classes(task), settings.network)
    return wire.Update(site=site.name, weights_hash=signature, groups=groups or {}, facts=facts)
