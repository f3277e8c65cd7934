"""Training of task `adaptation`: pretraining on the source, then rounds in which teachers label the sites' pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from common import wire
from common.checkpoint import arrays_hash
from common.styles.bank import BANK_FILE, StyleBank
from common.styles.style import style_kind
from server.adaptation.pretrain import pretrained_model
from server.adaptation.pretrain_snapshot import drop_snapshot, state_file
from server.adaptation.styles import gather_styles, wants_styles
from server.adaptation.teachers import update_teachers
from server.settings.network_rules import check_clusters
from server.states.network import NetworkState
from server.tasks.network_training import NetworkTraining
from server.transport.reply_checks import Ask


@dataclass
class AdaptationTraining(NetworkTraining):
    """A network's training with pretraining before it and teachers beside it.

    ``held`` remembers which teachers lie on which site's disk: a teacher travels once, not every round.
    """

    held: dict[str, frozenset[str]] = field(default_factory=dict)
    hashes: dict[int, str] = field(default_factory=dict)

    def prepare(self, state: NetworkState, ask: Ask, names: list[str], run_dir: Path) -> NetworkState:
        """Gather styles, find clusters, and pretrain on the source.

        Clusters first: sites that form none are told so before hours of pretraining.
        """
        check_clusters(self.config, len(names))
        styles = self._styles(ask, names, run_dir) if wants_styles(self.config) else None
        if styles is not None:
            state = self.grouped(state, styles, run_dir)
        kept = self.config.source.styles
        bank = StyleBank.load(kept, self.config.style) if kept else styles
        model = pretrained_model(self.config, self.classes, state.model, bank, run_dir)
        return replace(state, model=model, pretrained=model)

    def _styles(self, ask: Ask, names: list[str], run_dir: Path) -> StyleBank:
        """Ask the sites for their styles; a pretraining that was stopped goes on in those that it began with."""
        kept = run_dir / BANK_FILE
        if state_file(run_dir).is_file() and kept.is_file():
            return StyleBank.load(kept, style_kind(self.config.style))
        return gather_styles(ask, names, self.config, run_dir)

    def begin(self, state: NetworkState, number: int, ask: Ask, names: list[str]) -> NetworkState:
        """Update the teachers, after sites that came late have found their clusters."""
        state = super().begin(state, number, ask, names)
        self.hashes.clear()
        return update_teachers(state, number, self.config.teacher, self.layout)

    def phase(self, state: NetworkState, number: int) -> str:
        """Every round trains: one that measures statistics sends the whole network as well."""
        return "train"

    def parts(
        self, state: NetworkState, site: str, number: int, action: str
    ) -> tuple[wire.Groups, wire.Options]:
        """Return the network that a site starts from, and the teachers that it does not hold yet.

        A site that does not answer is no longer believed to hold anything: it gets its teachers again.
        """
        groups, options = super().parts(state, site, number, action)
        if action != wire.TRAIN:
            return groups, options
        held = self.held.pop(site, frozenset())
        wanted = {"teacher": state.teacher_for(site)} if self.config.teacher.update != "student" else {}
        if self.config.teacher.distill_weight:
            wanted["pretrained"] = state.pretrained
        sent: set[str] = set()
        for role, arrays in wanted.items():
            if not arrays:  # nobody was pretrained, and no EMA teacher has begun
                continue
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

    def merge(self, state: NetworkState, updates: Mapping[str, wire.Update], number: int) -> NetworkState:
        """Merge one round, and remember which teachers the sites hold."""
        for name, update in updates.items():
            self.held[name] = frozenset(str(update.facts.get(wire.HOLDS, "")).split(","))
        return super().merge(state, updates, number)

    def checkpointed(self, run_dir: Path) -> None:
        """Remove the snapshot: the pretrained network lies in the checkpoint from now on."""
        drop_snapshot(run_dir)
