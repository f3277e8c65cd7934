"""The Flower strategy: client sampling, what sites are asked, and how replies become the next model.

Flower documents a strategy's hooks; here they are thin. An `Exchange` sends and checks, a `Training` has the
arithmetic, and `start` runs the loop that it was given. It is also the run at hand: what rounds need lies here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.serverapp.strategy import Strategy

from common import wire
from common.settings.schema import RunConfig
from server.evaluation.scorer import Scorer
from server.loop.left_out import LEFT_OUT_FILE, LeftOut
from server.loop.merging import merge_replies
from server.loop.sampling import sample_clients
from server.privacy.group_search import Suspects
from server.tasks.base import Training
from server.transport.exchange import Exchange, Payload, Replies
from server.transport.registry import SiteRegistry
from server.transport.reply_checks import ReplySchema
from server.transport.retrying_link import arrived

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Result

log = logging.getLogger(__name__)


@dataclass
class SegmentationStrategy(Strategy):  # type: ignore[misc]
    """Train one segmentation model over all sites; ``state`` is that model as the task sees it."""

    config: RunConfig
    run_dir: Path
    training: Training
    scorer: Scorer
    exchange: Exchange
    state: Any
    loop: Callable[[SegmentationStrategy], None]
    first_round: int = 1
    started: float = field(default_factory=time.monotonic)
    suspects: Suspects = field(default_factory=Suspects)
    """Who may spoil secure sums, by the sums that were nonsense so far."""
    aside: Replies = field(default_factory=Replies)
    """Why sites were left out of questions beside the round's own."""
    number: int = 0
    """The round at hand; 0 before the first."""
    lost: int = 0
    """How many rounds did not count since the last one that did."""
    absent: int = 0
    """In how many rounds running too few sites answered at all."""

    def __post_init__(self) -> None:
        """Find out which sites are left out."""
        self.left_out = LeftOut(self.run_dir / LEFT_OUT_FILE, self.first_round)

    @property
    def registry(self) -> SiteRegistry:
        """The connected sites."""
        return self.exchange.registry

    def choose(self, number: int) -> list[str]:
        """Return the sites of a round; one that measures statistics asks all of them."""
        wanted = 0 if self.config.measures(number) else self.config.sites.per_round
        return sample_clients(self.registry.sites, wanted, self.config.seed, number)

    def payload(self, name: str, action: str, number: int, options: wire.Options | None = None) -> Payload:
        """Return what a site starts from; ``options`` win over the task's own."""
        groups, told = self.training.parts(self.state, name, number, action)
        return Payload(groups, told | (options or {}))

    def address(self, names: Iterable[str], action: str, number: int) -> list[Message]:
        """Build one message per site."""
        # a generator: a network's arrays are encoded site by site, never held for all of them at once
        payloads = ((name, self.payload(name, action, number)) for name in names)
        return self.exchange.address(payloads, action, number)

    def ask(self, names: list[str], action: str, expectation: ReplySchema) -> dict[str, wire.Update]:
        """Send one action beside a round's own and return the checked replies by name."""
        expectation = replace(expectation, weights_hash=self.registry.weights_hash)
        found = self.exchange.collect(self.address(names, action, self.number), expectation, self.number)
        self.aside.add_account(replace(found, bytes_up={}, bytes_down={}))
        return found.updates

    def schema(self, number: int) -> ReplySchema:
        """Return how the replies of a round have to look."""
        return self.training.expect(
            self.state, self.training.phase(self.state, number), self.registry.weights_hash
        )

    # ---- Flower's hooks ------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address the sites of this round; arrays and configuration are those of `state` and `config`."""
        return self.address(self.choose(server_round), wire.TRAIN, server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message] | Replies
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge replies into `state` and return what they became; those that are not checked yet are checked first.

        Returns None for both, and leaves `state` as it was, where too few replies are usable.
        """
        if not isinstance(replies, Replies):
            replies = self.exchange.check(map(arrived, replies), self.schema(server_round), server_round)
        merged, reason = merge_replies(self.training, self.state, replies, server_round)
        if reason:
            log.warning("round %d does not count: %s", server_round, reason)
            return None, None
        self.state = merged
        return wire.array_record(self.training.saved(self.state).head), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every connected site to score the model, where the sites hold the labelled shards."""
        names = sorted(self.registry.sites) if self.config.eval.where == "sites" else []
        return self.address(names, wire.EVALUATE, server_round)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing: the scorer sums the sites' confusion matrices, and matches clusters once."""
        return None

    def summary(self) -> None:
        """Log what this strategy will do."""
        c = self.config
        log.info("task %s, %s, %d rounds, seed %d", c.task, self.training.summary(), c.rounds, c.seed)

    def start(self, grid: Grid, *_: Any, **__: Any) -> Result:
        """Run all rounds of an opened run (see `server.loop.run.run`)."""
        from flwr.serverapp.strategy import Result  # needed nowhere else

        self.loop(self)
        return Result()
