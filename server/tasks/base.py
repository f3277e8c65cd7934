"""Interfaces of a task at the server: the task itself, and its part of one run.

The loop, the strategy, checks of replies and the files of a run are the same for every task. A `ServerTask` has what
commands need of it; a `Training` says where a run starts, what a site is sent, how its reply has to look, and how
replies become the next state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from common import wire
from common.checkpoint import Checkpoint
from common.data.classes import ClassTable
from common.data.manifest import Shard
from server.transport.reply_checks import Ask, ReplySchema

if TYPE_CHECKING:
    # heavy (torch), and wanted by no command before it has begun to work
    from common.settings.schema import RunConfig
    from server.evaluation.scorer import Scorer, Scoring
    from server.inference.base import Cluster, Predictor


class ServerTask(Protocol):
    """A task as commands see it; it holds nothing of any run."""

    def check_settings(self, config: RunConfig) -> None:
        """Raise `UserError` for settings that this task cannot honour, alone or together."""

    def check_run(self, config: RunConfig, shards: Sequence[Shard]) -> None:
        """Raise `UserError` for what would stop a simulation; ``shards`` are what the sites train on.

        Makes the run directory last.
        """

    def unfinished(self, config: RunConfig) -> Path | None:
        """Return the file of a preparation that was stopped, where ``config.resume`` names one."""

    def first_stage(self, config: RunConfig, run_dir: Path) -> RunConfig | None:
        """Return the settings of a run that has to come before this one, None where there is none or it is done."""

    def begin_run(self, config: RunConfig, run_dir: Path, unfinished: Path | None) -> None:
        """Check, before sites are greeted, that a run without a checkpoint can start; take over what is unfinished."""

    def scorer(self, config: RunConfig) -> Scorer:
        """Open the labelled shards that the server scores on."""

    def training(self, config: RunConfig, classes: ClassTable | None) -> Training:
        """Return the task's part of a run; raises `UserError` for settings that it cannot honour."""

    def predictor(
        self, saved: Checkpoint, where: str, device: str, cluster: Cluster, site: str | None
    ) -> Predictor:
        """Return what segments images as a checkpoint says; ``where`` is its path, for messages."""

    def evaluate(self, saved: Checkpoint, where: str, shard: Shard, how: Scoring) -> dict[str, Any]:
        """Score a checkpoint on a labelled shard; returns fields of the record of ``evaluate --json``."""


@dataclass(frozen=True)
class Saved:
    """What of a state goes into a checkpoint (see `common.checkpoint.Checkpoint`)."""

    head: wire.Arrays
    centroids: np.ndarray
    extra: wire.Arrays = field(default_factory=dict)


class Training(Protocol):
    """A task's part of one run. States are immutable."""

    @property
    def buffers_replies(self) -> bool:
        """Whether replies are so large that they wait on disk for the end of a round."""

    @property
    def polish_passes(self) -> int:
        """How often all sites are asked for sums after the last round, to `polish` its state."""

    def initial(self, channels: int) -> Any:
        """Return the state that follows from the settings alone; ``channels`` as the sites report it."""

    def restore(self, checkpoint: Checkpoint) -> Any:
        """Return the state that a checkpoint holds."""

    def saved(self, state: Any) -> Saved:
        """Return what a checkpoint has to hold."""

    def prepare(self, state: Any, ask: Ask, names: list[str], run_dir: Path) -> Any:
        """Do what comes before the first round, once per run; resumed runs pass it by."""

    def begin(self, state: Any, number: int, ask: Ask, names: list[str]) -> Any:
        """Return the state that a round starts from; ``names`` are the connected sites."""

    def phase(self, state: Any, number: int) -> str:
        """Return what the sites do in a round that starts from this state."""

    def greeting(self) -> wire.Options:
        """Return what a greeting tells the sites beside the settings."""

    def parts(self, state: Any, site: str, number: int, action: str) -> tuple[wire.Groups, wire.Options]:
        """Return the arrays and options that a site is sent."""

    def expect(self, state: Any, phase: str, weights_hash: str) -> ReplySchema:
        """Return how the reply to a round has to look."""

    def expect_sums(self, state: Any, weights_hash: str) -> ReplySchema:
        """Return how the reply to a request for sums has to look."""

    def expect_confusion(self, state: Any, classes: int) -> ReplySchema:
        """Return how the reply to a request for scores has to look."""

    def merge(self, state: Any, updates: Mapping[str, wire.Update], number: int) -> Any:
        """Return the state after a round of checked updates, at least one."""

    def polish(self, state: Any, updates: Mapping[str, wire.Update]) -> Any:
        """Return the state after one more pass over checked sums, at least those of one site."""

    def checkpointed(self, run_dir: Path) -> None:
        """Remove what the checkpoint that was just written takes the place of."""

    def summary(self) -> str:
        """Return in a line what the task will do."""
