"""A run at hand: its settings, folder, sites, strategy and scorer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import wire
from common.settings.schema import RunConfig
from server.evaluation.scorer import Scorer
from server.loop.strategy import SegmentationStrategy
from server.tasks.base import Training
from server.transport.exchange import Exchange
from server.transport.link import Link
from server.transport.registry import SiteRegistry
from server.transport.reply_checks import ReplySchema


@dataclass
class Run:
    """Everything that one run needs at hand."""

    config: RunConfig
    run_dir: Path
    strategy: SegmentationStrategy
    scorer: Scorer
    first_round: int
    started: float = field(default_factory=time.monotonic)

    @property
    def state(self) -> Any:
        """The model as it is now."""
        return self.strategy.state

    @property
    def training(self) -> Training:
        """The task's part of the run."""
        return self.strategy.training

    @property
    def exchange(self) -> Exchange:
        """What talks to the sites."""
        return self.strategy.exchange

    @property
    def link(self) -> Link:
        """The link below it."""
        return self.exchange.link

    @property
    def registry(self) -> SiteRegistry:
        """The connected sites."""
        return self.strategy.registry

    def ask(self, names: list[str], action: str, expectation: ReplySchema) -> dict[str, wire.Update]:
        """Send one action outside of a round and return the checked replies by name."""
        payloads = {name: self.strategy.payload(name, action, 0) for name in names}
        return self.exchange(payloads, action, 0, expectation).updates
