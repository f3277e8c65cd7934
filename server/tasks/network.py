"""What do tasks `supervised` and `adaptation` add to the round loop: a whole network, styles, teachers?"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from common import wire
from common.checkpoint import Checkpoint, arrays_hash
from common.data.classes import ClassTable
from common.errors import UserError
from common.losses.reductions import crucial_classes
from common.models.deeplab import build_network, network_signature, network_to_arrays
from common.models.parameter_groups import cluster_keys, site_keys
from common.settings.schema import RunConfig
from common.styles.bank import BANK_FILE, StyleBank
from common.styles.style import style_kind
from server.adaptation.pretrain_snapshot import state_file
from server.adaptation.styles import gather_styles, group_sites, place_newcomers, wants_styles
from server.adaptation.teachers import update_teachers
from server.settings.network_rules import network_plan, refuse_conflicts, refuse_other_form
from server.states.network import Layout, NetworkState
from server.tasks.base import Options, Saved
from server.tasks.network_merge import merge_networks
from server.tasks.network_statistics import merge_statistics
from server.tasks.unsupervised_merge import weights_of
from server.transport.reply_checks import Ask, ReplySchema

log = logging.getLogger(__name__)

STATISTICS = "statistics"
"""The phase, and the group, of a round in which no weight changes."""

HOLDS = "holds"
"""The fact in which a site names the teachers that lie on its disk, by hash."""


@dataclass
class NetworkWork:
    """Arithmetic is in `network_merge`, `teachers` and `styles`; see `server.tasks.base.Work` for each part.

    Memory: replies wait for the end of a round in files (`disk_buffer`), and what several sites are sent is
    encoded once (`strategy`), so that the server holds a few copies of the network for any number of sites.

    ``held`` remembers which teachers lie on which site's disk: a teacher travels once, not every round.
    ``uncounted`` is how many rounds every site may have trained before the state began to count them.
    """

    config: RunConfig
    classes: ClassTable
    start: wire.Arrays
    layout: Layout
    held: dict[str, frozenset[str]] = field(default_factory=dict)
    hashes: dict[int, str] = field(default_factory=dict)
    uncounted: int = 0

    @classmethod
    def of(cls, config: RunConfig, classes: ClassTable | None) -> NetworkWork:
        """Build the network once: its arrays are the start, its modules say which name is what.

        Raises `UserError` without a class table, for weights that do not serve, and for conflicting settings.
        """
        refuse_conflicts(config)
        if classes is None:
            raise UserError(
                f"Task '{config.task}' needs a class table and none is known; name one by eval.classes, or give "
                "a shards folder whose partition.json holds one."
            )
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
        return state

    def saved(self, state: NetworkState) -> Saved:
        """Return the shared network, no centroids, and the rest by name."""
        return Saved(state.model, np.zeros((0, 0), dtype=np.float32), state.to_extra())

    def prepare(self, state: NetworkState, ask: Ask, names: list[str], run_dir: Path) -> NetworkState:
        """Gather styles, find clusters, and pretrain on the source where the task needs it.

        Clusters first: sites that form none are told so before hours of pretraining.
        """
        from server.settings.network_rules import check_clusters

        check_clusters(self.config, len(names))
        styles = self._styles(ask, names, run_dir) if wants_styles(self.config) else None
        if styles is not None and self.config.clusters.layers != "none":
            state = replace(state, grouping=group_sites(styles, self.config, run_dir))
        if self.config.task == "adaptation":
            from server.adaptation.pretrain import pretrained_model

            kept = self.config.source.styles
            bank = StyleBank.load(kept, self.config.style) if kept else styles
            model = pretrained_model(self.config, self.classes, state.model, bank, run_dir)
            state = replace(state, model=model, pretrained=model)
        return state

    def _styles(self, ask: Ask, names: list[str], run_dir: Path) -> StyleBank:
        """Ask the sites for their styles; a pretraining that was stopped goes on in those that it began with."""
        kept = run_dir / BANK_FILE
        if self.config.task == "adaptation" and state_file(run_dir).is_file() and kept.is_file():
            return StyleBank.load(kept, style_kind(self.config.style))
        return gather_styles(ask, names, self.config, run_dir)

    def begin(self, state: NetworkState, number: int, ask: Ask, names: list[str]) -> NetworkState:
        """Place sites that came late, start the clusters when their time has come, and update the teachers."""
        if state.grouping is not None:
            grouping = place_newcomers(state.grouping, ask, names, self.config)
            state = replace(state, grouping=grouping)
            if not state.clusters and number > self.config.clusters.bootstrap_rounds:
                state = state.with_clusters(grouping, self.layout)
        if self.config.task == "adaptation":
            state = update_teachers(state, number, self.config.teacher, self.layout)
        self.hashes.clear()
        return state

    def phase(self, number: int) -> str:
        """Every round trains, but for a last one that measures statistics alone."""
        measuring = self.config.task == "supervised" and self.config.measures(number)
        return STATISTICS if measuring else "train"

    def greeting(self) -> Options:
        """Return the number of classes and their names, and which of them the loss treats as crucial."""
        crucial = crucial_classes(self.config.reduction, self.classes)
        return {
            "classes": self.classes.num_classes,
            "class-names": json.dumps(self.classes.names, ensure_ascii=False),
            "crucial": ",".join(
                str(index) for index, is_crucial in enumerate(crucial.tolist()) if is_crucial
            ),
        }

    def parts(self, state: NetworkState, site: str, number: int, action: str) -> tuple[wire.Groups, Options]:
        """Return the network that a site starts from, and the teachers that it does not hold yet.

        A site that does not answer is no longer believed to hold anything: it gets its teachers again.
        """
        options: Options = self.greeting() | {"phase": self.phase(number)}
        if action == wire.STYLE:
            return {}, options
        options["trained"] = state.trained.get(site, self.uncounted)
        groups: wire.Groups = dict(self.layout.split(state.model_for(site)))
        if self.config.task != "adaptation" or action != wire.TRAIN:
            return groups, options
        held = self.held.pop(site, frozenset())
        wanted = {"teacher": state.teacher_for(site)} if self.config.teacher.update != "student" else {}
        if self.config.teacher.distill_weight:
            wanted["pretrained"] = state.pretrained
        sent: set[str] = set()
        for role, arrays in wanted.items():
            key = self._hash(arrays)
            options[role] = key
            if key not in held and key not in sent:
                split = self.layout.split(arrays)
                groups |= {f"{role}-{part}": own for part, own in split.items()}
                sent.add(key)
        return groups, options

    def _hash(self, arrays: wire.Arrays) -> str:
        # hashing 48 MB takes a while and all sites of a round are told about the same few dicts
        if id(arrays) not in self.hashes:
            self.hashes[id(arrays)] = arrays_hash(arrays)
        return self.hashes[id(arrays)]

    def expect(self, state: NetworkState, phase: str, weights_hash: str) -> ReplySchema:
        """Return the names and shapes of a trained network, or of its statistics."""
        groups = self.layout.split(state.model)
        if phase == STATISTICS:
            groups = {"statistics": groups["statistics"]}
        return ReplySchema.like(groups, weights_hash)

    def expect_confusion(self, state: NetworkState, classes: int) -> ReplySchema:
        """Return the shape of an evaluation reply: predicted by true classes."""
        return ReplySchema({"confusion": {"confusion": (classes, classes)}})

    def merge(self, state: NetworkState, updates: Mapping[str, wire.Update], number: int) -> NetworkState:
        """Merge one round."""
        for name, update in updates.items():
            self.held[name] = frozenset(str(update.facts.get(HOLDS, "")).split(","))
        merge = merge_statistics if self.phase(number) == STATISTICS else merge_networks
        state = merge(state, updates, weights_of(updates, self.config), self.layout, self.config)
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
