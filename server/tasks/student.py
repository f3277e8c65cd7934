"""Task `student`: clusters of a first stage become masks, from which the federation trains a network that one can ship.

The first stage is a whole run of task `unsupervised` in a folder of its own. Each site gets its model once, makes
masks, and a network learns them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from common import wire
from common.checkpoint import Checkpoint, arrays_hash, load_checkpoint, resumed_file
from common.data.check import check_label_files, check_shard_fits
from common.data.classes import ClassTable, cluster_table
from common.data.manifest import Shard
from common.errors import UserError
from common.settings.schema import RunConfig
from common.settings.tasks import TASK_FACTS
from common.system.cli import progress_line
from server.evaluation.scorer import Scoring
from server.evaluation.student import StudentScorer, evaluate_student
from server.inference.base import Cluster
from server.inference.networks import StudentPredictor
from server.preflight import check_cached_features, check_same_network, scored_by_clusters
from server.run_dir import FIRST_STAGE, prepare_run_dir
from server.settings.first_stage import check_first_stage, first_stage_settings, has_checkpoint
from server.states import NetworkState
from server.tasks.adaptation import AdaptationTraining
from server.tasks.base import SERVER_TASKS, Saved
from server.tasks.supervised import NetworkTraining, SupervisedTask
from server.transport.reply_checks import Ask, ReplySchema

_FACTS = TASK_FACTS["student"]

# Frequency below which a cluster weighs no more: a handful of pixels would else outweigh whole images.
RAREST = 1e-4

_MASKS = "masks"
# Of a checkpoint's extra arrays, those that the clusters of an image do not depend on.
_SERVER_ALONE = ("site/", "memory/", "shared/", "starts/")


@SERVER_TASKS.register(_FACTS.name, summary=_FACTS.summary, facts=_FACTS)
class StudentTask(SupervisedTask):
    """A first stage comes before the first round; one that was stopped can be gone on with."""

    def check_settings(self, config: RunConfig) -> None:
        """Refuse what the network cannot honour, then what the first stage cannot."""
        super().check_settings(config)
        check_first_stage(config)

    def check_run(self, config: RunConfig, shards: Sequence[Shard]) -> Path:
        """Check images and labels for both stages, and the checkpoint; once the first stage is done, no backbone."""
        self.check_settings(config)
        training, unfinished = self.training(config, None), self.unfinished(config)
        checkpoint = load_checkpoint(config.resume) if config.resume and unfinished is None else None
        scored = scored_by_clusters(config, shards)
        stage = first_stage_settings(config)
        for shard in shards:
            check_shard_fits(shard, config)
            check_shard_fits(shard, stage)
        for shard in scored:
            check_label_files(shard, progress_line(f"checking labels of {shard.name}"))
        if checkpoint is None:
            check_cached_features(stage, [*shards, *scored])
            return prepare_run_dir(config, unfinished)
        check_same_network(checkpoint, config, training)
        return prepare_run_dir(config, resumed_file(config.resume, checkpoint))

    def cached(self, config: RunConfig) -> RunConfig | None:
        """The first stage learns from cached features; once it is done, masks take their place."""
        done = bool(config.resume) and self.unfinished(config) is None
        return None if done else first_stage_settings(config)

    def unfinished(self, config: RunConfig) -> Path | None:
        """Return a file of a first stage that was stopped, or done, before the student's first checkpoint."""
        folder = Path(config.resume)
        if not config.resume or has_checkpoint(folder) or not has_checkpoint(folder / FIRST_STAGE):
            return None
        return folder / FIRST_STAGE / "metrics.jsonl"  # it lies where a checkpoint's folder would

    def first_stage(self, config: RunConfig, run_dir: Path) -> RunConfig | None:
        """Return the settings of the first stage, None where it is done."""
        folder = run_dir / FIRST_STAGE
        stage = first_stage_settings(config).model_copy(update={"run_dir": str(folder)})
        if not has_checkpoint(folder):
            return stage
        if not config.resume:
            raise UserError(
                f"{folder} already holds a first stage; go on with it by resume={run_dir}, or choose another --run-dir."
            )
        done = load_checkpoint(folder).round >= stage.rounds
        return None if done else stage.model_copy(update={"resume": str(folder)})

    def scorer(self, config: RunConfig) -> StudentScorer:
        """Score the network's outputs as clusters, matched to classes."""
        return StudentScorer.open(config)

    def training(self, config: RunConfig, classes: ClassTable | None) -> StudentTraining:
        """Train the network of the settings on masks; classes play no part."""
        return StudentTraining.of(config, cluster_table(config.model.clusters))

    def predictor(
        self, saved: Checkpoint, where: str, device: str, cluster: Cluster, site: str | None
    ) -> StudentPredictor:
        """Segment by the network alone: the first stage's backbone plays no part any more."""
        return StudentPredictor(saved, where, device, cluster, site)

    def evaluate(self, saved: Checkpoint, where: str, shard: Shard, how: Scoring) -> dict[str, Any]:
        """Score clusters, matched to the shard's classes."""
        return evaluate_student(saved, where, shard, how)


@dataclass
class StudentTraining(AdaptationTraining):
    """A network's training on masks, with EMA teachers beside it.

    ``first`` holds the first stage's model, flat by name, with the hash of its backbone. ``counts`` are each site's
    certain pixels by cluster. ``masked`` says which sites are believed to hold their masks.
    """

    first: wire.Arrays = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    masked: set[str] = field(default_factory=set)

    @property
    def clusters(self) -> int:
        """K, the number of outputs."""
        return self.classes.num_classes

    def prepare(self, state: NetworkState, ask: Ask, names: list[str], run_dir: Path) -> NetworkState:
        """Take over what the first stage found."""
        self.first = first_model(load_checkpoint(run_dir / FIRST_STAGE))
        return state

    def restore(self, checkpoint: Checkpoint) -> NetworkState:
        """Return the state of a checkpoint, which holds the first stage's model as well."""
        state = super().restore(checkpoint)
        for key, value in checkpoint.extra.items():
            kind, _, rest = key.partition("/")
            if kind == FIRST_STAGE:
                self.first[rest] = value
            elif kind == _MASKS:
                self.counts[rest] = value
        return state

    def saved(self, state: NetworkState) -> Saved:
        """Return the network, no centroids, and beside its own state what sites need to make masks again."""
        saved = super().saved(state)
        extra = {f"{FIRST_STAGE}/{key}": value for key, value in self.first.items()}
        extra |= {f"{_MASKS}/{site}": counts for site, counts in self.counts.items()}
        return replace(saved, extra=saved.extra | extra)

    def begin(self, state: NetworkState, number: int, ask: Ask, names: list[str]) -> NetworkState:
        """Let sites that hold no masks make them, then update the teachers: the first one has learned something."""
        missing = [name for name in names if name not in self.masked]
        if missing:
            expected = ReplySchema({_MASKS: {"counts": (self.clusters,)}})
            for name, update in ask(missing, wire.SUMS, expected).items():
                self.counts[name] = update.groups[_MASKS]["counts"].astype(np.int64)
                self.masked.add(name)
        return (
            NetworkTraining.begin(self, state, number, ask, names)
            if number == 1
            else super().begin(state, number, ask, names)
        )

    def phase(self, state: NetworkState, number: int) -> str:
        """Every round trains, but for a last one that measures statistics alone."""
        return NetworkTraining.phase(self, state, number)

    def parts(
        self, state: NetworkState, site: str, number: int, action: str
    ) -> tuple[wire.Groups, wire.Options]:
        """Return the network that a site starts from, or the first stage's model to make masks by."""
        key: wire.Options = {"masks": arrays_hash(self.first)} if action in (wire.SUMS, wire.TRAIN) else {}
        if action == wire.SUMS:
            model = {name: value for name, value in self.first.items() if name != "backbone"}
            groups: wire.Groups = {"head": {}, "centroids": {}, "extra": {}}
            for name, value in model.items():
                group, _, rest = name.partition("/")
                groups[group][rest] = value
            backbone = self.first["backbone"].tobytes().hex()
            return groups, self.greeting() | key | {"backbone": backbone}
        groups, options = super().parts(state, site, number, action)
        if action == wire.TRAIN:
            self.masked.discard(site)  # until it answers: its disk may have lost them
            key["balance"] = ",".join(f"{weight:.6g}" for weight in self.balance())
        return groups, options | key

    def balance(self) -> np.ndarray:
        """Return the weight [K] of a pixel of each cluster: frequency^-balance, with a mean of 1 over all pixels."""
        total = sum(self.counts.values(), np.zeros(self.clusters, dtype=np.int64)).astype(np.float64)
        frequency = total / max(total.sum(), 1.0)
        weight = np.maximum(frequency, RAREST) ** -self.config.student.balance
        return np.asarray(weight / max(float((frequency * weight).sum()), 1e-12) if total.any() else weight)

    def expect_confusion(self, state: NetworkState, classes: int) -> ReplySchema:
        """Return the shape of an evaluation reply: clusters by classes."""
        return ReplySchema({"confusion": {"confusion": (self.clusters, classes)}})

    def merge(self, state: NetworkState, updates: Mapping[str, wire.Update], number: int) -> NetworkState:
        """Merge one round; a site that answered holds its masks."""
        self.masked |= updates.keys()
        return super().merge(state, updates, number)

    def checkpointed(self, run_dir: Path) -> None:
        """The first stage stays where it is."""

    def summary(self) -> str:
        """Return the network's plan, and what it learns."""
        share = self.config.student.keep
        return f"{super().summary()}, masks of the {share:g} most certain pixels of {FIRST_STAGE}"


def first_model(saved: Checkpoint) -> wire.Arrays:
    """Return what of a first stage's checkpoint makes clusters, flat by name, with its backbone's hash as bytes."""
    arrays = {f"head/{key}": value for key, value in saved.head.items()}
    arrays["centroids/centroids"] = saved.centroids
    kept = {key: value for key, value in saved.extra.items() if not key.startswith(_SERVER_ALONE)}
    arrays |= {f"extra/{key}": value for key, value in kept.items()}
    arrays["backbone"] = np.frombuffer(bytes.fromhex(saved.weights_hash), dtype=np.uint8).copy()
    return arrays
