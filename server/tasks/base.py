"""What does a kind of task add to the round loop?

The loop (`rounds`), the hooks (`strategy`), checking, talking and writing are the same for every task. A
`Work` says where a run starts, what a site is sent, how its answer has to look, and how answers become the
next state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from common import wire
from common.checkpoint import Checkpoint
from common.data.classes import ClassTable
from server.transport.reply_checks import Ask, ReplySchema

if TYPE_CHECKING:
    from common.evaluation.score import Score

Options = wire.Options


@dataclass(frozen=True)
class Saved:
    """What of a state goes into a checkpoint (see `common.checkpoint.Checkpoint`)."""

    head: wire.Arrays
    centroids: np.ndarray
    extra: wire.Arrays = field(default_factory=dict)


class Work(Protocol):
    """The part of a run that depends on ``config.task``. States are immutable."""

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

    def phase(self, number: int) -> str:
        """Return what the sites do in a round."""

    def greeting(self) -> Options:
        """Return what a greeting tells the sites beside the settings."""

    def parts(self, state: Any, site: str, number: int, action: str) -> tuple[wire.Groups, Options]:
        """Return the arrays and options that a site is sent."""

    def expect(self, state: Any, phase: str, weights_hash: str) -> ReplySchema:
        """Return how the reply to a round has to look."""

    def expect_confusion(self, state: Any, classes: int) -> ReplySchema:
        """Return how the reply to a request for scores has to look."""

    def merge(self, state: Any, updates: Mapping[str, wire.Update], number: int) -> Any:
        """Return the state after a round of checked updates, at least one."""

    def summary(self) -> str:
        """Return in a line what the task will do."""


class Scorer(Protocol):
    """Scores states on labelled images that nobody trains on, where the server has any."""

    classes: ClassTable | None

    @property
    def split(self) -> str | None:
        """Name of what is scored."""

    @property
    def weights_hash(self) -> str:
        """Hash of the server's own model; empty where it has none."""

    @property
    def channels(self) -> int:
        """Channels of the server's own features; 0 where it has none."""

    @property
    def grid(self) -> tuple[int, int] | None:
        """Grid of the server's own features."""

    def score(self, state: Any) -> Score:
        """Score a state."""

    def score_confusions(self, confusions: Mapping[str, np.ndarray]) -> Score:
        """Score the sites' own counts, summed."""

    def draw(self, run_dir: Path, round_number: int, state: Any) -> Path | None:
        """Draw a few images with their prediction."""
