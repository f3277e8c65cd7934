"""The registry of tasks at a site."""

from __future__ import annotations

from client.work.base import SiteTask
from common.registry import Registry
from common.settings.schema import RunConfig
from common.settings.tasks import TaskFacts

SITE_TASKS: Registry[type[SiteTask], TaskFacts] = Registry("task", "client.work")


def site_task(config: RunConfig) -> SiteTask:
    """Return what a site does for the task of a run's settings."""
    return SITE_TASKS.get(config.task)()
