"""Task `supervised` at a site: gradient steps on its own labels."""

from __future__ import annotations

from client.site import SiteConfig
from client.work.base import SITE_TASKS
from client.work.network import LocalRound, NetworkSite, check_classes, with_table
from common import wire
from common.data.classes import ClassTable
from common.data.data_loader import ImageDataset
from common.data.manifest import Shard
from common.errors import UserError
from common.losses.reductions import labelled_loss
from common.settings.schema import RunConfig
from common.settings.tasks import TASK_FACTS
from common.training.steps import Stepper, train_steps

_FACTS = TASK_FACTS["supervised"]


@SITE_TASKS.register(_FACTS.name, summary=_FACTS.summary, facts=_FACTS)
class SupervisedSite(NetworkSite):
    """The only task whose sites open the labels of what they train on."""

    def training_shard(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> Shard:
        """Read the manifest; every image needs a label of the server's classes."""
        shard = with_table(site.load_shard(), settings)
        check_classes(labelled_shard(shard, site.name), task, site.name)
        return shard

    def images(
        self, task: wire.Task, shard: Shard, settings: RunConfig, site: SiteConfig, device: str
    ) -> ImageDataset:
        """Return the images with their labels."""
        key = (settings.seed, site.name)  # and the epoch
        return ImageDataset(shard, settings.transforms, key, True, shard.classes, **site.reading(device))

    def learn(self, local: LocalRound) -> tuple[dict[str, float], tuple[str, ...]]:
        """Train on the labels, or replace the statistics by those of the site's images."""
        if local.measuring:
            local.measure(1.0)
            return {}, ()  # there is no loss to report
        reduction, crucial = local.settings.reduction, local.crucial()
        stepper = Stepper(local.network, local.settings.sgd, **local.schedule)
        found = train_steps(
            stepper,
            local.batches,
            lambda logits, labels: labelled_loss(logits, labels, reduction, crucial),
            local.steps,
        )
        metrics = {"loss": found.loss + found.prox, "prox": found.prox, "steps": float(found.steps)}
        return metrics | stepper.clock.metrics(), ()

    def sends_weights(self, settings: RunConfig, number: int) -> bool:
        """Tell whether a round changes weights: in one that only measures they are as they came."""
        return not settings.measures(number)


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
