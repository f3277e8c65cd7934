"""Task `adaptation`: a whole network that was pretrained on a labelled source and learns from sites without labels.

Pretraining comes before the first round; then teachers label the sites' pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from common import wire
from common.checkpoint import arrays_hash
from common.data.check import (
    check_batch_sizes,
    check_labelled,
    check_single_features,
    check_truth,
    refuse_faulty,
)
from common.data.classes import ClassTable
from common.data.images import entry_size, header_size, view_box
from common.data.manifest import Shard
from common.errors import UserError
from common.settings.schema import RunConfig
from common.settings.tasks import TASK_FACTS
from common.styles.bank import BANK_FILE, StyleBank
from common.styles.style import half_sizes, style_kind
from server.adaptation.pretrain import load_pretrained, pretrained_model, source_shard
from server.adaptation.pretrain_snapshot import (
    IMAGES,
    Origin,
    check_origin,
    drop_snapshot,
    images_hash,
    migrate_pretraining,
    state_file,
    stopped_pretraining,
)
from server.adaptation.styles import gather_styles, wants_styles
from server.adaptation.teachers import update_teachers
from server.preflight import need_classes
from server.settings.network_rules import check_clusters
from server.states import NetworkState
from server.tasks.base import SERVER_TASKS
from server.tasks.supervised import NetworkTraining, SupervisedTask
from server.transport.reply_checks import Ask

_FACTS = TASK_FACTS["adaptation"]


@SERVER_TASKS.register(_FACTS.name, summary=_FACTS.summary, facts=_FACTS)
class AdaptationTask(SupervisedTask):
    """Pretraining comes before the first round; one that was stopped can be gone on with."""

    def check_run(self, config: RunConfig, shards: Sequence[Shard]) -> Path:
        """Check the source as well, and what lies in the run directory of an earlier pretraining."""
        run_dir = super().check_run(config, shards)
        if not config.resume or self.unfinished(config) is not None:
            check_stopped(state_file(run_dir), config)
        return run_dir

    def check_preparation(self, config: RunConfig, table: ClassTable, stopped: Path | None) -> None:
        """Check the source, or the pretraining that was begun on it."""
        check_source(config, table)
        if stopped is None:
            check_source_files(config)
        else:
            check_stopped(stopped, config)

    def unfinished(self, config: RunConfig) -> Path | None:
        """Return the snapshot of a pretraining that was stopped."""
        return stopped_pretraining(config)

    def begin_run(self, config: RunConfig, run_dir: Path, unfinished: Path | None) -> None:
        """Check source and snapshot, and take the snapshot into the run directory."""
        check_start(config, run_dir, unfinished)
        if unfinished is not None:
            migrate_pretraining(unfinished, run_dir)

    def training(self, config: RunConfig, classes: ClassTable | None) -> AdaptationTraining:
        """Train the network of the settings by teachers."""
        return AdaptationTraining.of(config, classes)


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
        # ids of arrays are taken again once those of the last round are gone
        self.hashes.clear()
        return update_teachers(state, number, self.config.teacher, self.layout)

    def phase(self, state: NetworkState, number: int) -> str:
        """Every round trains: one that measures statistics sends the whole network as well."""
        return self.local_phase(number) if self.layout.local_only else "train"

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
            # teacher and pretrained network may be the same arrays: they travel once
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


def check_start(config: RunConfig, run_dir: Path, stopped: Path | None) -> None:
    """Raise `UserError` where adaptation cannot begin; of the source, labels are read and headers of images.

    In a deployment nobody else asks before the sites do their part. ``stopped`` is the pretraining that the settings
    say to go on from, if any: it was begun with these labels.
    """
    check_source(config, need_classes(config))
    if stopped is not None:
        check_stopped(stopped, config)
    check_stopped(state_file(run_dir), config)
    if stopped is None and not config.source.checkpoint and not state_file(run_dir).is_file():
        check_truth(source_shard(config))


def check_source(config: RunConfig, table: ClassTable) -> None:
    """Refuse a source that adaptation cannot start from; of its images, headers are read at most."""
    if config.source.checkpoint:
        load_pretrained(config, table)
        return
    shard = source_shard(config)
    check_labelled(shard, table, "a source is trained on with labels")
    if config.source.styles:
        # one that is empty is refused too
        StyleBank.load(config.source.styles, config.style).restyle(config.style)
    if config.style.transfer in ("fourier", "spectra"):
        check_window(shard, config)


def check_source_files(config: RunConfig) -> None:
    """Refuse a source with images or labels that cannot be read, or that make no batches; all are decoded."""
    if config.source.checkpoint:
        return
    shard, key = source_shard(config), "source.batch"
    refuse_faulty(shard, labels=True)
    check_batch_sizes(shard, config.transforms, config.source.batch, key)
    check_single_features(shard, config.transforms, config.network.output_stride, config.source.batch, key)


def check_stopped(file: Path, config: RunConfig) -> None:
    """Refuse to go on with a pretraining of other settings or images; no file: nothing to go on with."""
    if file.is_file():
        check_origin(file, Origin.of(config, {}))  # a shard is there only where the settings are the same
        check_origin(file, Origin.of(config, {IMAGES: images_hash(source_shard(config))}))


def check_window(shard: Shard, config: RunConfig) -> None:
    """Refuse a source image that is smaller than the window of frequencies that it would be given."""
    rows, columns = (2 * half + 1 for half in half_sizes(config.style))
    for index in range(len(shard)):
        # nearly all images pass by their header alone
        if least_side(shard, index) >= max(rows, columns):
            continue
        height, width = entry_size(shard, index)
        if height < rows or width < columns:
            raise UserError(
                f"{shard.image_path(index)} has {width} x {height} pixels, but the style window has {columns} x {rows} "
                "frequencies, and no picture has more of them than pixels; choose a smaller window (style.side, "
                "half-size or fraction), or leave the image out."
            )


def least_side(shard: Shard, index: int) -> int:
    """Return the shorter side of an image in pixels, whichever way up it is; 0 where its header cannot be read.

    `entry_size` wants to know the orientation as well, for which Pillow decodes all of a PNG.
    """
    try:
        height, width = header_size(shard.image_path(index))
    except UserError:
        return 0
    left, top, right, bottom = view_box(shard.entries[index].view, height, width)
    return min(right - left, bottom - top)
