"""The registry of tasks, and settings checked by the run's own task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import UserError
from common.registry import Registry
from common.settings.load import load_config
from common.settings.schema import RunConfig
from common.settings.tasks import TaskFacts
from server.settings.registered import check_names, rule_conflict
from server.settings.rules import conflict_of
from server.tasks.base import ServerTask

SERVER_TASKS: Registry[type[ServerTask], TaskFacts] = Registry("task", "server.tasks")


def task_of(config: RunConfig) -> ServerTask:
    """Return the task of a run's settings."""
    return SERVER_TASKS.get(config.task)()


def load_settings(*layers: Mapping[str, Any]) -> RunConfig:
    """Merge layers of settings as `load_config` does, and check what only the server asks.

    That is: registered names, facts of the merge rules, and the rules of the run's task. Raises `UserError`.
    """
    config = load_config(*layers)
    check_names(config)
    if conflict := conflict_of(config) or rule_conflict(config):
        raise UserError(f"The settings do not fit together: {conflict}.")
    task_of(config).check_settings(config)
    return config
