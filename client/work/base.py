"""The interface of a task at a site, one method for each kind of message, and the registry of tasks."""

from __future__ import annotations

from collections.abc import Callable

from client.site import SiteConfig
from common import wire
from common.errors import UserError
from common.registry import Registry
from common.settings.schema import RunConfig
from common.settings.tasks import TaskFacts

# what answers one kind of message
Handler = Callable[[wire.Task, RunConfig, SiteConfig], wire.Update]


class SiteTask:
    """What a site computes for a task; whatever a task does not need is refused."""

    def hello(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Tell the server this site's name, size and model."""
        raise self._unknown(wire.HELLO, settings)

    def train(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Do the work of a round."""
        raise self._unknown(wire.TRAIN, settings)

    def sums(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Return sums over this site's patches."""
        raise self._unknown(wire.SUMS, settings)

    def style(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Return the style of this site's images."""
        raise self._unknown(wire.STYLE, settings)

    def evaluate(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Score the received model on this site's own labelled shard."""
        raise self._unknown(wire.EVALUATE, settings)

    def _unknown(self, action: str, settings: RunConfig) -> UserError:
        return UserError(
            f"The server asks for {action!r}, which sites of task '{settings.facts.name}' do not know; run the same "
            "release on both sides."
        )


SITE_TASKS: Registry[type[SiteTask], TaskFacts] = Registry("task", "client.work")


def site_task(config: RunConfig) -> SiteTask:
    """Return what a site does for the task of a run's settings."""
    return SITE_TASKS.get(config.task)()
