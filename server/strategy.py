"""The Flower strategy: whom to ask for what, and how the answers become the next model.

Hooks are thin. Checking is in `quarantine`, arithmetic in `merge`, talking in `link`, the loop in
`rounds`; `start` hands over to that loop, so that Flower's usual call works as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flwr.serverapp.strategy import Strategy

from common import wire
from common.config import RunConfig
from common.phases import Phase, phase_of
from common.seeds import numpy_generator
from common.spectral import PatchScatter
from server.link import outcomes
from server.merge import merge_round
from server.model_state import ModelState
from server.quarantine import Expectation, read_update
from server.registry import Registry

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Result

log = logging.getLogger(__name__)


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
    state: ModelState
    run_key: str
    num_classes: int = 0
    gathered: Gathered = field(default_factory=Gathered)
    sent: list[Message] = field(default_factory=list)

    # ---- choosing and asking -------------------------------------------------------------------

    def choose(self, server_round: int) -> list[str]:
        """Draw the sites of a round by name, from the seed: node ids and arrival order play no part."""
        names = sorted(self.registry.sites)
        wanted = self.config.sites.per_round
        if wanted and wanted < len(names):
            picked = numpy_generator(self.config.seed, "sites", server_round).choice(
                len(names), wanted, False
            )
            names = sorted(names[i] for i in picked)
        return names

    def address(
        self, names: Iterable[str], action: str, server_round: int, options: dict[str, Any] | None = None
    ) -> list[Message]:
        """Build one message per site, with the groups that this site starts from."""
        deadline = self.config.sites.deadline_seconds
        settings = self.config.to_wire()
        self.sent = []
        for name in names:
            task = wire.Task(
                round=server_round,
                settings=settings,
                run_key=self.run_key,
                groups=self.state.groups_for(name),
                options=options or {},
            )
            content = wire.encode_task(task, self.config.wire.dtype)
            node = self.registry.sites[name].node_id
            self.sent.append(wire.make_message(content, node, action, server_round, deadline))
        return self.sent

    def gather(self, replies: Iterable[Message], expectation: Expectation) -> Gathered:
        """Check every reply; what fails is named, with the reason, and left out."""
        names = {info.node_id: name for name, info in self.registry.sites.items()}
        found = Gathered()
        for node, outcome in outcomes(self.sent, replies, self.config.sites.deadline_seconds).items():
            name = names[node]
            found.bytes_down[name] = outcome.bytes_down
            if outcome.content is None:
                found.quarantined[name] = str(outcome.error)
                continue
            found.bytes_up[name] = wire.payload_bytes(outcome.content)
            update, reason = read_update(outcome.content, expectation)
            if update is None:
                found.quarantined[name] = str(reason)
            else:
                found.updates[name] = update
        for name, reason in sorted(found.quarantined.items()):
            log.warning("site %s is left out: %s", name, reason)
        found.updates = dict(sorted(found.updates.items()))
        self.gathered = found
        return found

    # ---- Flower's hooks ------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address the sites of this round; arrays and configuration are those of `state` and `config`."""
        phase = phase_of(self.config, server_round)
        return self.address(self.choose(server_round), wire.TRAIN, server_round, {"phase": phase})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge what may be merged into `state`; too few usable replies leave it as it was."""
        phase = phase_of(self.config, server_round)
        found = self.gather(replies, self.expect_train(phase))
        if len(found.updates) < self.config.sites.minimum:
            log.warning(
                "round %d does not count: %d usable replies, %d needed",
                server_round,
                len(found.updates),
                self.config.sites.minimum,
            )
            return None, None
        self.state = merge_round(self.state, found.updates, self.config, phase)
        return wire.array_record(self.state.head), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every connected site to score the model, where the sites hold the labelled shards."""
        names = sorted(self.registry.sites) if self.config.eval.where == "sites" else []
        return self.address(names, wire.EVALUATE, server_round)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Check the confusion matrices; `scoring` sums them and matches once."""
        self.gather(replies, self.expect_confusion())
        return None

    def summary(self) -> None:
        """Log what this strategy will do."""
        c = self.config
        log.info(
            "task %s, preset %s: %s objective, share %s, heads by %s (%s), centroids by %s, %d rounds, seed %d",
            c.task,
            c.preset,
            c.loss.objective,
            c.centroids.share,
            c.aggregation.rule,
            c.aggregation.weights,
            c.centroids.merge,
            c.rounds,
            c.seed,
        )

    def start(self, grid: Grid, *_: Any, **__: Any) -> Result:
        """Run the whole federation (see `server.rounds.run`)."""
        from flwr.serverapp.strategy import Result

        from server.rounds import run

        run(grid, self.config)
        return Result()

    # ---- what replies have to look like --------------------------------------------------------

    def expect_train(self, phase: Phase) -> Expectation:
        """Return the groups, names and shapes of a training reply."""
        clusters, dim = self.state.centroids.shape
        if phase == "scatter":
            channels = self.state.head["linear.weight"].shape[1]
            return Expectation({"scatter": PatchScatter.shapes(channels)}, self.weights_hash)
        if phase == "clusters":
            return self.expect_sums()
        shapes: dict[str, Mapping[str, tuple[int, ...]]] = {
            "head": {key: value.shape for key, value in self.state.head.items()},
            "centroids": {"centroids": (clusters, dim), "counts": (clusters,)},
        }
        if self.config.centroids.merge == "lloyd":
            shapes |= self.expect_sums().shapes
        if self.state.shared:
            shapes["shared"] = {key: value.shape for key, value in self.state.shared.items()}
        return Expectation(shapes, self.weights_hash)

    def expect_sums(self) -> Expectation:
        """Return the shapes of a reply to one exact pass of k-means."""
        clusters, dim = self.state.centroids.shape
        sums: dict[str, tuple[int, ...]] = {
            "sums": (clusters, dim),
            "counts": (clusters,),
            "cosines": (clusters,),
        }
        return Expectation({"sums": sums}, self.weights_hash)

    def expect_confusion(self) -> Expectation:
        """Return the shape of an evaluation reply."""
        return Expectation({"confusion": {"confusion": (len(self.state.centroids), self.num_classes)}})

    @property
    def weights_hash(self) -> str:
        """The hash of the frozen backbone that all accepted sites share."""
        hashes = {info.weights_hash for info in self.registry.sites.values()}
        return min(hashes) if hashes else ""
