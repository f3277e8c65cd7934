"""Task `supervised`: a whole network of named classes, trained with the sites' labels.

Task `adaptation` builds on what stands here: layout, style clusters, and how the sites' networks merge.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from common import wire
from common.checkpoint import Checkpoint, load_checkpoint, resumed_file
from common.data.check import check_labelled, check_shard_fits, refuse_faulty
from common.data.classes import ClassTable
from common.data.manifest import Shard
from common.errors import UserError
from common.losses.reductions import crucial_classes
from common.models.differences import SHOWN
from common.models.network import build_network, network_signature, network_to_arrays
from common.models.parameter_groups import cluster_keys, site_keys
from common.settings.schema import RunConfig
from common.settings.tasks import TASK_FACTS
from common.styles.bank import StyleBank
from server.adaptation.styles import gather_styles, group_sites, place_newcomers, wants_styles
from server.aggregation.heads import site_weights
from server.evaluation.networks import NetworkScorer, evaluate_network_checkpoint
from server.evaluation.scorer import Scorer, Scoring
from server.inference.base import Cluster
from server.inference.networks import NetworkPredictor
from server.preflight import check_same_network, named_shards, need_classes, scored_shards
from server.run_dir import prepare_run_dir
from server.settings.network_rules import (
    check_clusters,
    network_plan,
    refuse_conflicts,
    refuse_other_form,
)
from server.states import Layout, NetworkState
from server.tasks.base import SERVER_TASKS, Saved, ServerTask, Training
from server.tasks.network_merge import merge_networks, merge_statistics
from server.tasks.plausibility import model_fault, size_fault
from server.transport.reply_checks import Ask, Plausible, ReplySchema

_FACTS = TASK_FACTS["supervised"]

# The phase, and the group, of a round in which no weight changes.
_STATISTICS = "statistics"

# The phase of a round in which each site keeps to itself what it trained.
_STAYS = "stays"


@SERVER_TASKS.register(_FACTS.name, summary=_FACTS.summary, facts=_FACTS)
class SupervisedTask(ServerTask):
    """See `server.tasks.base.ServerTask` for each hook."""

    def check_settings(self, config: RunConfig) -> None:
        """Refuse settings of other tasks, and those that contradict one another."""
        refuse_conflicts(config)

    def check_run(self, config: RunConfig, shards: Sequence[Shard]) -> Path:
        """Check shards, labels and checkpoint; the sites' labels are looked at only where they train."""
        self.check_settings(config)
        table = need_classes(config)
        training = self.training(config, table)  # missing weights show here
        training.greeting()  # a crucial class that the table does not name shows here
        check_clusters(config, len(shards))
        labels = config.facts.opens_labels
        for shard in named_shards(config, shards):
            if labels:
                check_labelled(shard, table, f"task '{config.task}' trains with labels")
            refuse_faulty(shard, labels=labels)
            check_shard_fits(shard, config)
        stopped = self.unfinished(config)
        checkpoint = load_checkpoint(config.resume) if config.resume and stopped is None else None
        if checkpoint is None:
            self.check_preparation(config, table, stopped)
        for shard in scored_shards(config, [shard.name for shard in shards]):
            check_labelled(shard, table, "the run is scored on it")
            refuse_faulty(shard, labels=True)
        if checkpoint is None:
            return prepare_run_dir(config, stopped)
        check_same_network(checkpoint, config, training)
        return prepare_run_dir(config, resumed_file(config.resume, checkpoint))

    def check_preparation(self, config: RunConfig, table: ClassTable, stopped: Path | None) -> None:
        """Raise `UserError` where what comes before the first round cannot begin: nothing does."""

    def scorer(self, config: RunConfig) -> Scorer:
        """Score named classes, on any number of test sets."""
        return NetworkScorer.open(config)

    def training(self, config: RunConfig, classes: ClassTable | None) -> NetworkTraining:
        """Train the network of the settings."""
        return NetworkTraining.of(config, classes)

    def predictor(
        self, saved: Checkpoint, where: str, device: str, cluster: Cluster, site: str | None
    ) -> NetworkPredictor:
        """Segment by the shared network, or by those of style clusters."""
        return NetworkPredictor(saved, where, device, cluster, site)

    def evaluate(self, saved: Checkpoint, where: str, shard: Shard, how: Scoring) -> dict[str, Any]:
        """Score named classes; nothing is matched."""
        return evaluate_network_checkpoint(saved, where, shard, how)


@dataclass
class NetworkTraining(Training):
    """Arithmetic is in `network_merge` and `styles`; see `server.tasks.base.Training` for each part.

    Memory: replies wait for the end of a round in files (`disk_buffer`), and what several sites are sent is
    encoded once (`strategy`), so that the server holds a few copies of the network for any number of sites.

    ``uncounted`` is how many rounds every site may have trained before the state began to count them. ``inherited`` are
    networks that an earlier release kept on behalf of sites, until these keep them themselves.
    """

    config: RunConfig
    classes: ClassTable
    start: wire.Arrays
    layout: Layout
    uncounted: int = 0
    inherited: dict[str, wire.Arrays] = field(default_factory=dict)

    @property
    def buffers_replies(self) -> bool:
        """Always: a network has 24 MB, and every site sends one."""
        return True

    @classmethod
    def of(cls, config: RunConfig, classes: ClassTable | None) -> Self:
        """Build the network once: its arrays are the start, its modules say which name is what.

        Raises `UserError` without a class table, and for weights that do not serve.
        """
        if classes is None:
            raise UserError(
                f"Task '{config.task}' needs a class table and none is known; name one by eval.classes, or give "
                "a shards folder whose partition.json holds one."
            )
        # built once: by module type, not by name, it is known what is a statistic
        model = build_network(classes.num_classes, config.network, config.seed)
        weights, statistics = network_to_arrays(model)
        local = config.centroids.share == "none"
        everything = frozenset(weights) | frozenset(statistics)
        layout = Layout(
            parameters=frozenset(weights),
            statistics=frozenset(statistics),
            cluster=frozenset() if local else cluster_keys(model, config.clusters.layers),
            site=everything if local else site_keys(model, config.network.batchnorm) & everything,
        )
        return cls(
            config, classes, weights | statistics, replace(layout, cluster=layout.cluster - layout.site)
        )

    def initial(self, channels: int) -> NetworkState:
        """Return the network that follows from weights file and seed."""
        return NetworkState(self.start)

    def restore(self, checkpoint: Checkpoint) -> NetworkState:
        """Return the state of a checkpoint; raises `UserError` where other settings gave it another form."""
        refuse_other_form(checkpoint.config, self.config)
        state = NetworkState.from_arrays(checkpoint.head, checkpoint.extra)
        if not state.trained:  # an earlier release did not count: its sites went on with the rounds
            self.uncounted = max(checkpoint.round - int(self.config.measures(1)), 0)
        if self.layout.local_only:
            self.inherited = dict(state.private)
        return state

    def saved(self, state: NetworkState) -> Saved:
        """Return the shared network, no centroids, and the rest by name, but nothing that stays at a site."""
        if self.layout.local_only:
            state = replace(state, private={})
        return Saved(state.model, np.zeros((0, 0), dtype=np.float32), state.to_extra())

    def prepare(self, state: NetworkState, ask: Ask, names: list[str], run_dir: Path) -> NetworkState:
        """Gather styles and find clusters where the settings ask for them."""
        check_clusters(self.config, len(names))  # sites that form none are told so before hours of training
        if not wants_styles(self.config):
            return state
        return self.grouped(state, gather_styles(ask, names, self.config, run_dir), run_dir)

    def grouped(self, state: NetworkState, styles: StyleBank, run_dir: Path) -> NetworkState:
        """Return the state with the clusters of these styles, where there are to be any."""
        if self.config.clusters.layers == "none":
            return state
        return replace(state, grouping=group_sites(styles, self.config, run_dir))

    def begin(self, state: NetworkState, number: int, ask: Ask, names: list[str]) -> NetworkState:
        """Place sites that came late, and start the clusters when their time has come."""
        if state.grouping is None:
            return state
        grouping = place_newcomers(state.grouping, ask, names, self.config)
        state = replace(state, grouping=grouping)
        if not state.clusters and number > self.config.clusters.bootstrap_rounds:
            state = state.with_clusters(grouping, self.layout)
        return state

    def phase(self, state: NetworkState, number: int) -> str:
        """Every round trains, but for a last one that measures statistics alone."""
        if self.layout.local_only:
            return self.local_phase(number)
        return _STATISTICS if self.config.measures(number) else "train"

    def local_phase(self, number: int) -> str:
        """Return whether the sites' own networks are shown to the server after a round, which then scores them."""
        shown = self.config.eval.where == "server" and bool(self.config.eval.shard)
        return SHOWN if shown and self.config.scores(number) else _STAYS

    def greeting(self) -> wire.Options:
        """Return the number of classes and their names, and which of them the loss treats as crucial."""
        crucial = crucial_classes(self.config.reduction, self.classes)
        return {
            "classes": self.classes.num_classes,
            "class-names": json.dumps(self.classes.names, ensure_ascii=False),
            "crucial": ",".join(
                str(index) for index, is_crucial in enumerate(crucial.tolist()) if is_crucial
            ),
        }

    def parts(
        self, state: NetworkState, site: str, number: int, action: str
    ) -> tuple[wire.Groups, wire.Options]:
        """Return the network that a site starts from; nothing where it is asked for its style alone."""
        options: wire.Options = self.greeting() | {"phase": self.phase(state, number)}
        if action == wire.STYLE:
            return {}, options
        options["trained"] = state.trained.get(site, self.uncounted)
        if self.layout.local_only and options["trained"] and site not in self.inherited:
            return {}, options  # it has its own network, and nobody else has
        own = self.inherited.get(site) or state.model_for(site)
        return dict(self.layout.split(own)), options

    def expect(self, state: NetworkState, phase: str, weights_hash: str) -> ReplySchema:
        """Return the names and shapes of a trained network, or of its statistics."""
        groups = self.layout.split(state.model)
        if phase == _STAYS:
            groups = {}
        if phase == _STATISTICS:
            groups = {"statistics": groups["statistics"]}
        return replace(ReplySchema.like(groups, weights_hash), plausible=self._plausible(groups))

    def _plausible(self, sent: Mapping[str, wire.Arrays]) -> Plausible:
        """Return what a reply is compared with: the site's size, and the network that it was sent, or one like it."""
        batch = self.config.local.batch
        return lambda update, sender: size_fault(update, sender, batch) or model_fault(update, sent)

    def expect_confusion(self, state: NetworkState, classes: int) -> ReplySchema:
        """Return the shape of an evaluation reply: predicted by true classes."""
        return ReplySchema({"confusion": {"confusion": (classes, classes)}})

    def merge(self, state: NetworkState, updates: Mapping[str, wire.Update], number: int) -> NetworkState:
        """Merge one round."""
        for name in updates:
            self.inherited.pop(name, None)
        merge = merge_statistics if self.phase(state, number) == _STATISTICS else merge_networks
        state = merge(
            state, updates, site_weights(updates, self.config.aggregation), self.layout, self.config
        )
        if self.config.measures(number):
            return state
        return replace(
            state,
            trained=state.trained | {name: state.trained.get(name, self.uncounted) + 1 for name in updates},
        )

    def summary(self) -> str:
        """Return network, optimiser, clusters and teacher."""
        return network_plan(self.config, self.classes.num_classes)

    def signature(self) -> str:
        """Return the identity of the architecture: sites with another one are refused."""
        return network_signature(self.classes.num_classes, self.config.network)
