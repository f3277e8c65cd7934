"""Interfaces of a task at the server, the registry of tasks, and settings checked by the run's own task.

The loop, the strategy, checks of replies and the files of a run are the same for every task. A `ServerTask` has what
commands need of it; a `Training` says where a run starts, what a site is sent, how its reply has to look, and how
replies become the next state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import wire
from common.checkpoint import Checkpoint
from common.data.classes import ClassTable
from common.data.manifest import Shard
from common.errors import UserError
from common.registry import Registry
from common.settings.load import load_config
from common.settings.schema import RunConfig
from common.settings.tasks import TaskFacts
from server.settings.rules import check_names, conflict_of, rule_conflict
from server.transport.reply_checks import Ask, ReplySchema

if TYPE_CHECKING:
    # heavy (torch), and wanted by no command before it has begun to work
    from server.evaluation.scorer import Scorer, Scoring
    from server.inference.base import Cluster, Predictor


class ServerTask(ABC):
    """A task as commands see it; it holds nothing of any run."""

    @abstractmethod
    def check_settings(self, config: RunConfig) -> None:
        """Raise `UserError` for settings that this task cannot honour, alone or together."""

    @abstractmethod
    def check_run(self, config: RunConfig, shards: Sequence[Shard]) -> Path:
        """Raise `UserError` for what would stop a simulation; ``shards`` are what the sites train on.

        Makes the run directory last, and returns it.
        """

    def cached(self, config: RunConfig) -> RunConfig | None:
        """Return the settings under which sites cache features before they learn, None where they cache none."""
        return None

    def unfinished(self, config: RunConfig) -> Path | None:
        """Return the file of a preparation that was stopped, where ``config.resume`` names one."""
        return None

    def first_stage(self, config: RunConfig, run_dir: Path) -> RunConfig | None:
        """Return the settings of a run that has to come before this one, None where there is none or it is done."""
        return None

    def begin_run(self, config: RunConfig, run_dir: Path, unfinished: Path | None) -> None:  # noqa: B027
        """Check, before sites are greeted, that a run without a checkpoint can start; take over what is unfinished."""

    @abstractmethod
    def scorer(self, config: RunConfig) -> Scorer:
        """Open the labelled shards that the server scores on."""

    @abstractmethod
    def training(self, config: RunConfig, classes: ClassTable | None) -> Training:
        """Return the task's part of a run; raises `UserError` without what it needs."""

    @abstractmethod
    def predictor(
        self, saved: Checkpoint, where: str, device: str, cluster: Cluster, site: str | None
    ) -> Predictor:
        """Return what segments images as a checkpoint says; ``where`` is its path, for messages."""

    @abstractmethod
    def evaluate(self, saved: Checkpoint, where: str, shard: Shard, how: Scoring) -> dict[str, Any]:
        """Score a checkpoint on a labelled shard; returns fields of the record of ``evaluate --json``."""


@dataclass(frozen=True)
class Saved:
    """What of a state goes into a checkpoint (see `common.checkpoint.Checkpoint`)."""

    head: wire.Arrays
    centroids: np.ndarray
    extra: wire.Arrays = field(default_factory=dict)


class Training(ABC):
    """A task's part of one run, a dataclass. What is not abstract does nothing by default; states are immutable."""

    config: RunConfig

    @property
    def buffers_replies(self) -> bool:
        """Whether replies are so large that they wait on disk for the end of a round."""
        return False

    @property
    def polish_passes(self) -> int:
        """How often all sites are asked for sums after the last round, to `polish` its state."""
        return 0

    @property
    def makes_up(self) -> bool:
        """Whether as many more polish passes make up for rounds that did not count."""
        return False

    @property
    def begins_with_chosen(self) -> bool:
        """Whether only the sites of a round are told to `begin`, not all that are connected."""
        return False

    @abstractmethod
    def initial(self, channels: int) -> Any:
        """Return the state that follows from the settings alone; ``channels`` as the sites report it."""

    @abstractmethod
    def restore(self, checkpoint: Checkpoint) -> Any:
        """Return the state that a checkpoint holds."""

    @abstractmethod
    def saved(self, state: Any) -> Saved:
        """Return what a checkpoint has to hold."""

    def prepare(self, state: Any, ask: Ask, names: list[str], run_dir: Path) -> Any:
        """Do what comes before the first round, once per run; resumed runs pass it by."""
        return state

    def begin(self, state: Any, number: int, ask: Ask, names: list[str]) -> Any:
        """Return the state that a round starts from; ``names`` are the connected sites (`begins_with_chosen`)."""
        return state

    @abstractmethod
    def phase(self, state: Any, number: int) -> str:
        """Return what the sites do in a round that starts from this state."""

    def greeting(self) -> wire.Options:
        """Return what a greeting tells the sites beside the settings."""
        return {}

    @abstractmethod
    def parts(self, state: Any, site: str, number: int, action: str) -> tuple[wire.Groups, wire.Options]:
        """Return the arrays and options that a site is sent."""

    @abstractmethod
    def expect(self, state: Any, phase: str, weights_hash: str) -> ReplySchema:
        """Return how the reply to a round has to look."""

    @abstractmethod
    def expect_confusion(self, state: Any, classes: int) -> ReplySchema:
        """Return how the reply to a request for scores has to look."""

    @abstractmethod
    def merge(self, state: Any, updates: Mapping[str, wire.Update], number: int) -> Any:
        """Return the state after a round of checked updates, at least one."""

    def alone(self) -> Training:
        """Return a copy that merges the reply of a single site, whatever rule the settings name."""
        config = self.config.model_copy(
            update={"aggregation": self.config.aggregation.model_copy(update={"rule": "mean"})}
        )
        return replace(self, config=config)  # type: ignore[type-var]

    def outliers(self, updates: Mapping[str, wire.Update]) -> dict[str, str]:
        """Return which of several replies cannot be honest beside the others, with the reason."""
        return {}

    def expect_sums(self, state: Any, weights_hash: str) -> ReplySchema:
        """Return how the reply to a request for sums has to look; only where there are `polish_passes`."""
        raise NotImplementedError

    def polish(self, state: Any, updates: Mapping[str, wire.Update]) -> Any:
        """Return the state after one more pass over checked sums, at least those of one site."""
        raise NotImplementedError

    def checkpointed(self, run_dir: Path) -> None:  # noqa: B027
        """Remove what the checkpoint that was just written takes the place of."""

    @abstractmethod
    def summary(self) -> str:
        """Return in a line what the task will do."""


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
