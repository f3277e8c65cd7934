"""Task `unsupervised`: a head on a frozen backbone and K semantic centroids, without labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common import wire
from common.checkpoint import Checkpoint, load_checkpoint, resumed_file
from common.data.check import check_label_files, check_shard_fits
from common.data.classes import ClassTable
from common.data.manifest import Shard
from common.losses.base import CLUSTERS, TRAIN, closed_form
from common.losses.extra_terms import build_objective
from common.models.head import build_head, init_centroids, state_to_numpy
from common.seeds import derive
from common.settings.schema import RunConfig
from common.settings.tasks import TASK_FACTS
from common.system.cli import progress_line
from server.centroids.base import CENTROID_RULES
from server.evaluation.clusters import ClusterScorer, evaluate_clusters
from server.evaluation.scorer import Scoring, known_classes
from server.inference.base import Cluster, Predictor
from server.preflight import check_cached_features, check_resumable, scored_by_clusters
from server.run_dir import prepare_run_dir
from server.settings.applicability import refuse_foreign
from server.states import ModelState, private_groups
from server.tasks.base import SERVER_TASKS, Saved, ServerTask, Training
from server.tasks.plausibility import outlying_scatters, plausible_for
from server.tasks.projection import ask_late
from server.tasks.unsupervised_merge import kmeans_pass, merge_round
from server.transport.reply_checks import Ask, ReplySchema

_FACTS = TASK_FACTS["unsupervised"]
log = logging.getLogger(__name__)


@SERVER_TASKS.register(_FACTS.name, summary=_FACTS.summary, facts=_FACTS)
class UnsupervisedTask(ServerTask):
    """See `server.tasks.base.ServerTask` for each hook."""

    def check_settings(self, config: RunConfig) -> None:
        """Refuse settings of other tasks; conflicts among its own are refused while settings are loaded."""
        refuse_foreign(config)

    def cached(self, config: RunConfig) -> RunConfig:
        """Sites learn from cached features alone."""
        return config

    def check_run(self, config: RunConfig, shards: Sequence[Shard]) -> Path:
        """Check shards, features, weights and checkpoint.

        Images are decoded only where no feature cache vouches for them, labels only those that score. The
        backbone is loaded only where features are missing.
        """
        self.check_settings(config)
        for shard in shards:
            check_shard_fits(shard, config)
        known_classes(config)
        checkpoint = load_checkpoint(config.resume) if config.resume else None
        scored = scored_by_clusters(config, shards)
        channels, weights_hash = check_cached_features(config, [*shards, *scored])
        for shard in scored:
            check_label_files(shard, progress_line(f"checking labels of {shard.name}"))
        if checkpoint is None:
            return prepare_run_dir(config, None)
        check_resumable(checkpoint, config, channels, weights_hash)
        return prepare_run_dir(config, resumed_file(config.resume, checkpoint))

    def scorer(self, config: RunConfig) -> ClusterScorer:
        """Score clusters, matched to classes."""
        return ClusterScorer.open(config)

    def training(self, config: RunConfig, classes: ClassTable | None) -> UnsupervisedTraining:
        """Train head and centroids; classes play no part."""
        return UnsupervisedTraining(config)

    def predictor(
        self, saved: Checkpoint, where: str, device: str, cluster: Cluster, site: str | None
    ) -> Predictor:
        """Segment by the shared head, or by that of a site which keeps its own."""
        from server.inference.clusters import ClusterPredictor  # a run never segments

        return ClusterPredictor(saved, where, device, cluster, site)

    def evaluate(self, saved: Checkpoint, where: str, shard: Shard, how: Scoring) -> dict[str, Any]:
        """Score clusters: of the shared model, of one site's, or of every site's by itself."""
        return evaluate_clusters(saved, where, shard, how)


@dataclass(frozen=True)
class UnsupervisedTraining(Training):
    """Arithmetic is in `unsupervised_merge`; see `server.tasks.base.Training` for the meaning of each part."""

    config: RunConfig

    @property
    def polish_passes(self) -> int:
        """Passes of exact spherical k-means for the final head, whatever rule merged the centroids so far."""
        return self.config.centroids.polish_passes

    @property
    def makes_up(self) -> bool:
        """A round of a closed form is a pass of k-means, as a polish pass is."""
        return closed_form(self.config) is not None and not private_groups(self.config)

    @property
    def begins_with_chosen(self) -> bool:
        """Sites that nobody draws are not asked for their sums."""
        return True

    def initial(self, channels: int) -> ModelState:
        """Return head, centroids [K, D] and the objective's shared arrays as drawn from the seed."""
        config = self.config
        return ModelState(
            head=state_to_numpy(build_head(channels, config.model, config.seed)),
            centroids=init_centroids(config.model.clusters, config.model.dim, config.seed),
            # a closed form has no steps, hence nothing to share beside the head
            shared=state_to_numpy(build_objective(config, channels)) if config.loss.facts.steps else {},
        )

    def restore(self, checkpoint: Checkpoint) -> ModelState:
        """Return the state of a checkpoint."""
        state = ModelState.from_arrays(checkpoint.head, checkpoint.centroids, checkpoint.extra)
        if "head" in private_groups(self.config):
            return replace(state, solved=bool(state.private))
        drawn = self.initial(state.head["linear.weight"].shape[1]).head
        return replace(
            state, solved=any(not np.array_equal(drawn[key], value) for key, value in state.head.items())
        )

    def saved(self, state: ModelState) -> Saved:
        """Return head, centroids, and the rest by name."""
        return Saved(state.head, state.centroids, state.to_extra())

    def begin(self, state: ModelState, number: int, ask: Ask, names: list[str]) -> ModelState:
        """Take sites that came late into the projection; draw the centroids anew before ``centroids.reset-round``."""
        config = self.config
        state = ask_late(state, names, ask, config, plausible_for(state, config))
        if number != config.centroids.reset_round:
            return state
        log.info("round %d starts with new centroids", number)
        drawn = init_centroids(config.model.clusters, config.model.dim, derive(config.seed, "reset"))
        private = {
            site: {name: arrays for name, arrays in groups.items() if name != "centroids"}
            for site, groups in state.private.items()
        }
        memory = {key: value for key, value in state.memory.items() if "centroids/" not in key}
        return replace(state, centroids=drawn, private=private, memory=memory)

    def phase(self, state: ModelState, number: int) -> str:
        """Return the work of a round, by what has been done: a first round that did not count is made up for."""
        closed = closed_form(self.config)
        if closed is None:
            return TRAIN
        return CLUSTERS if state.solved else closed.kind

    def parts(
        self, state: ModelState, site: str, number: int, action: str
    ) -> tuple[wire.Groups, wire.Options]:
        """Return the shared model, the site's own parts in their place.

        Under ``keep-least-moved`` one site trains a model of its own, but counts and scores for the shared one:
        what it sends is added to what the others found under that.
        """
        kept_aside = action != wire.TRAIN and not private_groups(self.config)
        groups = state.shared_groups() if kept_aside else state.groups_for(site)
        sends = CENTROID_RULES.facts(self.config.centroids.merge).takes
        told: wire.Options = {"phase": self.phase(state, number), "sends": sends}
        if action == wire.SUMS and (closed := closed_form(self.config)) is not None:
            told["what"] = closed.kind  # polish passes say otherwise
        if state.starts and action != wire.EVALUATE:
            starts, _, dim = state.starts["centroids"].shape
            told["starts"] = starts
            groups = groups | {
                "centroids": {
                    "centroids": state.starts["centroids"].reshape(-1, dim),
                    "groups": state.starts["groups"].reshape(-1),
                }
            }
        return groups, told

    def expect(self, state: ModelState, phase: str, weights_hash: str) -> ReplySchema:
        """Return the groups, names and shapes of a training reply."""
        clusters, dim = state.centroids.shape
        if phase == CLUSTERS:
            return self.expect_sums(state, weights_hash)
        closed, plausible = closed_form(self.config), plausible_for(state, self.config)
        if closed is not None:
            channels = state.head["linear.weight"].shape[1]
            return ReplySchema({closed.kind: closed.shapes(channels)}, weights_hash, plausible)
        shapes: dict[str, Mapping[str, tuple[int, ...]]] = {
            "head": {key: value.shape for key, value in state.head.items()},
            "centroids": {"centroids": (clusters, dim), "counts": (clusters,)},
        }
        if CENTROID_RULES.facts(self.config.centroids.merge).takes == "sums":
            shapes |= self.expect_sums(state, weights_hash).shapes
        if state.shared:
            shapes["shared"] = {key: value.shape for key, value in state.shared.items()}
        return ReplySchema(shapes, weights_hash, plausible)

    def expect_sums(self, state: ModelState, weights_hash: str) -> ReplySchema:
        """Return the shapes of a reply to one exact pass of k-means, of all starts one after the other."""
        clusters, dim = state.centroids.shape
        starts = len(state.starts["centroids"]) if state.starts else 1
        clusters *= starts
        sums: dict[str, tuple[int, ...]] = {
            "sums": (clusters, dim),
            "counts": (clusters,),
            "cosines": (clusters,),
        }
        if state.starts:
            own = clusters // starts
            sums |= {"shares": (starts, self.config.fitted_clusters), "entropies": (starts,)}
            sums["adjacency"] = (starts, own * (own + 1) // 2)
            family = starts // len(self.config.centerings)
            sums["overlaps"] = (starts, family, self.config.fitted_clusters, self.config.fitted_clusters)
        return ReplySchema({"sums": sums}, weights_hash, plausible_for(state, self.config))

    def expect_confusion(self, state: ModelState, classes: int) -> ReplySchema:
        """Return the shape of an evaluation reply: clusters by classes."""
        clusters = self.config.model.clusters if state.joined else len(state.centroids)
        return ReplySchema({"confusion": {"confusion": (clusters, classes)}})

    def outliers(self, updates: Mapping[str, wire.Update]) -> dict[str, str]:
        """Compare the sites' features, where they sent sums of them."""
        closed = closed_form(self.config)
        kind = closed.kind if closed else ""
        return outlying_scatters({name: u.groups[kind] for name, u in updates.items() if kind in u.groups})

    def merge(self, state: ModelState, updates: Mapping[str, wire.Update], number: int) -> ModelState:
        """Merge one round."""
        return merge_round(state, updates, self.config, self.phase(state, number))

    def polish(self, state: ModelState, updates: Mapping[str, wire.Update]) -> ModelState:
        """Take one pass of exact k-means: sums went up, centroids go down."""
        return kmeans_pass(state, updates, self.config, use_momentum=False)

    def summary(self) -> str:
        """Return objective and merge rules."""
        c = self.config
        return (
            f"preset {c.preset}: {c.loss.objective} objective, share {c.centroids.share}, heads by "
            f"{c.aggregation.rule} ({c.aggregation.weights}), centroids by {c.centroids.merge}"
        )
