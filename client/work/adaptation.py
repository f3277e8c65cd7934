"""Task `adaptation` at a site: gradient steps on what a teacher makes of images without labels."""

from __future__ import annotations

from client.site import SiteConfig
from client.work.network import (
    LocalRound,
    NetworkSite,
    crucial_of,
    measure_statistics,
    unlabelled,
    with_table,
)
from client.work.registry import SITE_TASKS
from client.work.self_training import AdaptationLoss, self_train
from client.work.teachers import collect_teachers
from common import wire
from common.data.data_loader import ImageDataset
from common.data.manifest import Shard
from common.settings.schema import RunConfig
from common.settings.tasks import TASK_FACTS

_FACTS = TASK_FACTS["adaptation"]


@SITE_TASKS.register(_FACTS.name, summary=_FACTS.summary, facts=_FACTS)
class AdaptationSite(NetworkSite):
    """Paths of labels are dropped with the manifest, so that nothing after it can open one."""

    def training_shard(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> Shard:
        """Read the manifest and drop the labels."""
        return unlabelled(with_table(site.load_shard(), settings))

    def images(self, shard: Shard, settings: RunConfig, site: SiteConfig, device: str) -> ImageDataset:
        """Return the images, and as the teacher sees them where that differs from the student."""
        key = (settings.seed, site.name)  # and the epoch
        plain = settings.teacher.view == "plain"
        return ImageDataset(shard, settings.transforms, key, False, None, device=device, plain=plain)

    def learn(self, local: LocalRound) -> tuple[dict[str, float], tuple[str, ...]]:
        """Train on what the teacher is sure of, or move the statistics towards those of the site's images."""
        settings, network = local.settings, local.network
        teachers = collect_teachers(local.task, settings, local.site, local.device)
        if local.measuring:
            share = settings.network.site_statistics
            return measure_statistics(network, local.shard, settings, local.device, share), teachers.held
        crucial = crucial_of(local.task, network)
        loss = AdaptationLoss(settings, teachers.teacher, teachers.pretrained, crucial)
        stepper = local.schedule.stepper(network, settings)
        return self_train(network, local.batches, loss, stepper), teachers.held
