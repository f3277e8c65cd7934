"""What does a site compute when a whole network is trained, with its labels or without any?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from client.site import SiteConfig
from client.work.teachers import Teachers, collect_teachers
from common import wire
from common.data.classes import ClassTable, known_table
from common.data.dataset import ImageBatch, ImageDataset
from common.data.manifest import Shard
from common.data.reading import entry_image
from common.errors import UserError
from common.losses.labelled import labelled_loss
from common.models.deeplab import DeepLab, build_network, load_arrays, network_signature, network_to_arrays
from common.seeds import derive
from common.settings.schema import RunConfig
from common.styles.style import style_kind, style_of
from common.training.steps import Anchor, Stepper, train_steps

HOLDS = "holds"


def task_classes(task: wire.Task) -> int:
    """Return the number of classes that the server trains."""
    return int(task.options.get("classes", 0))


def training_shard(settings: RunConfig, site: SiteConfig, task: wire.Task) -> Shard:
    """Read the manifest and check that it serves the task; paths of labels stay for supervised training only."""
    shard = with_table(site.load_shard(), settings)
    if settings.task != "supervised":
        return unlabelled(shard)
    check_classes(labelled_shard(shard, site.name), task, site.name)
    return shard


def unlabelled(shard: Shard) -> Shard:
    """Return a shard whose entries name no label, so that nothing after it can open one."""
    return replace(shard, entries=tuple(replace(entry, label=None) for entry in shard.entries))


def with_table(shard: Shard, settings: RunConfig) -> Shard:
    """Return a shard that knows its classes: by its ``partition.json``, else by a name in the run's settings."""
    return shard if shard.classes is not None else replace(shard, classes=known_table(settings.eval.classes))


def labelled_shard(shard: Shard, site: str) -> ClassTable:
    """Return the class table of a shard; raises `UserError` where an image has no label or there is no table."""
    missing = sum(entry.label is None for entry in shard.entries)
    if missing:
        raise UserError(
            f"{missing} of {len(shard)} images of {site} have no label; task 'supervised' needs one for every image, "
            "so add them or leave those images out."
        )
    if shard.classes is None:
        raise UserError(
            f"{site} has labels but no class table; write its manifest with `python -m partitions`, whose "
            "partition.json names one, or let the run name one by eval.classes."
        )
    return shard.classes


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


def answer_hello(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Tell the server this site's name, size and architecture."""
    classes = task_classes(task)
    shard = training_shard(settings, site, task)
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


def answer_style(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Return this site's style: a few numbers, the mean over its images."""
    shard = unlabelled(site.load_shard())
    images = (entry_image(shard, index) for index in range(len(shard)))
    return wire.Update(
        site=site.name,
        weights_hash=network_signature(task_classes(task), settings.network),
        groups={"style": {"style": style_of(images, style_kind(settings.style))}},
        facts={"images": len(shard)},
    )


def received_network(task: wire.Task, settings: RunConfig, device: str) -> DeepLab:
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

    def stepper(self, network: DeepLab, settings: RunConfig) -> Stepper:
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


def crucial_of(task: wire.Task, network: DeepLab) -> torch.Tensor:
    """Return which classes the server calls crucial, bool [C] on the network's device."""
    crucial = torch.zeros(task_classes(task), dtype=torch.bool)
    crucial[[int(index) for index in str(task.options.get("crucial", "")).split(",") if index]] = True
    return crucial.to(network.mean.device)


def train_on_labels(
    network: DeepLab, batches: Iterator[ImageBatch], settings: RunConfig, schedule: Schedule, task: wire.Task
) -> dict[str, float]:
    """Train on the site's labels and return the metrics of the round."""
    crucial = crucial_of(task, network)
    found = train_steps(
        network,
        batches,
        lambda logits, labels: labelled_loss(logits, labels, settings.reduction, crucial),
        settings.sgd,
        steps=schedule.steps,
        first_step=schedule.first_step,
        total_steps=schedule.total_steps,
        seed=schedule.seed,
        freeze=schedule.freeze,
        anchor=schedule.anchor,
        clip_norm=schedule.clip_norm,
    )
    return {"loss": found.loss + found.prox, "prox": found.prox, "steps": float(found.steps)}


def measure_statistics(network: DeepLab, shard: Shard, settings: RunConfig, device: str) -> dict[str, float]:
    """Move the batch norms of the network to the site's images, or towards them; there is no loss to report."""
    from common.training.batchnorm import blend_statistics, whole_images

    images = whole_images(shard, settings.transforms, device)
    share = settings.network.site_statistics if settings.task == "adaptation" else 1.0
    blend_statistics(network, images, share)
    return {}


def train_on_teacher(
    network: DeepLab,
    batches: Iterator[ImageBatch],
    settings: RunConfig,
    schedule: Schedule,
    teachers: Teachers,
    crucial: torch.Tensor,
) -> dict[str, float]:
    """Train on what the teacher is sure of and return the metrics of the round."""
    from client.work.self_training import AdaptationLoss, self_train

    loss = AdaptationLoss(settings, teachers.teacher, teachers.pretrained, crucial)
    return self_train(network, batches, loss, schedule.stepper(network, settings))


def answer_train(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Train the received network for a round: on labels, or on what a teacher makes of unlabelled images."""
    device = site.torch_device()
    shard = training_shard(settings, site, task)
    supervised = settings.task == "supervised"
    pictures = ImageDataset(
        shard,
        settings.transforms,
        (settings.seed, site.name),  # and the epoch
        supervised,
        shard.classes if supervised else None,
        device=device,
        plain=not supervised and settings.teacher.view == "plain",
    )
    network = received_network(task, settings, device)
    per_epoch = math.ceil(len(pictures) / settings.local.batch)
    schedule = schedule_of(task, settings, site, per_epoch)
    # a site goes on where its own last round stopped, which the server counts: its memory survives a resumed run
    skip = int(task.options.get("trained", 0)) * schedule.steps
    batches = pictures.batches(schedule.steps, settings.local.batch, skip=skip)
    measuring = settings.measures(task.round)
    teachers = Teachers(None, None, ()) if supervised else collect_teachers(task, settings, site, device)
    if measuring:
        metrics = measure_statistics(network, shard, settings, device)
    elif supervised:
        metrics = train_on_labels(network, batches, settings, schedule, task)
    else:
        metrics = train_on_teacher(network, batches, settings, schedule, teachers, crucial_of(task, network))
    weights, statistics = network_to_arrays(network)
    groups = {"weights": weights, "statistics": statistics}
    if measuring and supervised:
        del groups["weights"]  # they are as they came
    return wire.Update(
        site=site.name,
        weights_hash=network_signature(task_classes(task), settings.network),
        groups=groups,
        metrics=metrics,
        facts={"images": len(pictures), "batches": per_epoch, HOLDS: ",".join(teachers.held)},
    )


def answer_evaluate(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Score the received network on this site's own labelled shard: counts leave, nothing else."""
    from common.evaluation.networks import evaluate_network

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
