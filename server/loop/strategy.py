"""The Flower strategy: whom to ask for what, and how the answers become the next model.

Hooks are thin. Checking is in `quarantine`, arithmetic in `merge`, talking in `link`, the loop in
`rounds`; `start` hands over to that loop, so that Flower's usual call works as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flwr.serverapp.strategy import Strategy

from common import wire
from common.seeds import numpy_generator
from common.settings.load import to_wire
from common.settings.schema import RunConfig
from server.tasks.base import Options, Work
from server.transport.disk_buffer import buffered
from server.transport.link import paired, time_to_live
from server.transport.registry import Registry
from server.transport.reply_checks import ReplySchema, read_update, sanitize

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Result

log = logging.getLogger(__name__)


T = TypeVar("T")


def by_name(found: dict[str, T]) -> dict[str, T]:
    """Return the same in the order of site names, whoever answered first."""
    return dict(sorted(found.items()))


@dataclass
class Gathered:
    """What one message phase brought in, by site name."""

    updates: dict[str, wire.Update] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    bytes_up: dict[str, int] = field(default_factory=dict)
    bytes_down: dict[str, int] = field(default_factory=dict)


@dataclass
class SegmentationStrategy(Strategy):  # type: ignore[misc]
    """Aggregate segmentation heads and merge semantic centroids over sites."""

    config: RunConfig
    registry: Registry
    work: Work
    state: Any
    run_key: str
    num_classes: int = 0
    spool: Path | None = None
    gathered: Gathered = field(default_factory=Gathered)
    sent: list[Message] = field(default_factory=list)

    # ---- choosing and asking -------------------------------------------------------------------

    def choose(self, server_round: int) -> list[str]:
        """Draw the sites of a round by name, from the seed: node ids and arrival order play no part.

        A round that measures statistics asks all of them.
        """
        names = sorted(self.registry.sites)
        wanted = 0 if self.config.measures(server_round) else self.config.sites.per_round
        if wanted and wanted < len(names):
            picked = numpy_generator(self.config.seed, "sites", server_round).choice(
                len(names), wanted, False
            )
            names = sorted(names[i] for i in picked)
        return names

    def address(
        self, names: Iterable[str], action: str, server_round: int, options: Options | None = None
    ) -> list[Message]:
        """Build one message per site, with the groups that this site starts from; ``options`` win."""
        ttl = time_to_live(self.config.sites.deadline_seconds)
        settings = to_wire(self.config)
        self.sent = []
        encoded: wire.Encoded = {}
        for name in names:
            groups, told = self.work.parts(self.state, name, server_round, action)
            task = wire.Task(
                round=server_round,
                settings=settings,
                run_key=self.run_key,
                groups=groups,
                options=told | (options or {}),
            )
            content = wire.encode_task(task, self.config.wire.dtype, encoded)
            node = self.registry.sites[name].node_id
            self.sent.append(wire.make_message(content, node, action, server_round, ttl))
        return self.sent

    def gather(self, replies: Iterable[Message], expectation: ReplySchema) -> Gathered:
        """Check every reply as it comes; what fails is named, with the reason, and left out.

        What is good waits in a file where there is a ``spool``. Everything ends in the order of names.
        """
        names = {info.node_id: name for name, info in self.registry.sites.items()}
        found = Gathered()
        for node, outcome in paired(self.sent, replies, self.config.sites.deadline_seconds):
            name = names[node]
            found.bytes_down[name] = outcome.bytes_down
            if outcome.content is None:
                found.quarantined[name] = sanitize(str(outcome.error))
                continue
            found.bytes_up[name] = wire.payload_bytes(outcome.content)
            update, reason = read_update(outcome.content, expectation)
            if update is None:
                found.quarantined[name] = sanitize(str(reason))
            else:
                found.updates[name] = update if self.spool is None else buffered(update, self.spool)
        found = Gathered(
            updates=by_name(found.updates),
            quarantined=by_name(found.quarantined),
            bytes_up=by_name(found.bytes_up),
            bytes_down=by_name(found.bytes_down),
        )
        for name, reason in found.quarantined.items():
            log.warning("site %s is left out: %s", name, reason)
        self.gathered = found
        return found

    # ---- Flower's hooks ------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address the sites of this round; arrays and configuration are those of `state` and `config`."""
        return self.address(self.choose(server_round), wire.TRAIN, server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge what may be merged into `state`; too few usable replies leave it as it was."""
        expected = self.work.expect(self.state, self.work.phase(server_round), self.weights_hash)
        found = self.gather(replies, expected)
        if len(found.updates) < self.config.sites.minimum:
            log.warning(
                "round %d does not count: %d usable replies, %d needed",
                server_round,
                len(found.updates),
                self.config.sites.minimum,
            )
            return None, None
        self.state = self.work.merge(self.state, found.updates, server_round)
        return wire.array_record(self.work.saved(self.state).head), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every connected site to score the model, where the sites hold the labelled shards."""
        names = sorted(self.registry.sites) if self.config.eval.where == "sites" else []
        return self.address(names, wire.EVALUATE, server_round)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Check the confusion matrices; `scoring` sums them and matches once."""
        self.gather(replies, self.work.expect_confusion(self.state, self.num_classes))
        return None

    def summary(self) -> None:
        """Log what this strategy will do."""
        c = self.config
        log.info("task %s, %s, %d rounds, seed %d", c.task, self.work.summary(), c.rounds, c.seed)

    def start(self, grid: Grid, *_: Any, **__: Any) -> Result:
        """Run the whole federation (see `server.loop.run.run`)."""
        from flwr.serverapp.strategy import Result

        from server.loop.run import run

        run(grid, self.config)
        return Result()

    @property
    def weights_hash(self) -> str:
        """The hash of the frozen backbone that all accepted sites share."""
        hashes = {info.weights_hash for info in self.registry.sites.values()}
        return min(hashes) if hashes else ""
