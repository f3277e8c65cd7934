"""Task `student`: clusters of a first stage become masks, from which the federation trains a network that one can ship.

The first stage is a whole run of task `unsupervised` in a folder of its own. Hooks import what they need themselves:
to check settings must not take the time of loading torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.settings.tasks import TASK_FACTS
from server.tasks.network import NetworkTask
from server.tasks.registry import SERVER_TASKS

if TYPE_CHECKING:
    from common.checkpoint import Checkpoint
    from common.data.classes import ClassTable
    from common.data.manifest import Shard
    from common.settings.schema import RunConfig
    from server.evaluation.scorer import Scorer, Scoring
    from server.inference.base import Cluster, Predictor
    from server.tasks.student_training import StudentTraining

_FACTS = TASK_FACTS["student"]


@SERVER_TASKS.register(_FACTS.name, summary=_FACTS.summary, facts=_FACTS)
class StudentTask(NetworkTask):
    """A first stage comes before the first round; one that was stopped can be gone on with."""

    def check_settings(self, config: RunConfig) -> None:
        """Refuse what the network cannot honour, then what the first stage cannot."""
        from server.settings.first_stage import check_first_stage

        super().check_settings(config)
        check_first_stage(config)

    def check_run(self, config: RunConfig, shards: Sequence[Shard]) -> None:
        """Check images and labels for both stages, and the checkpoint; once the first stage is done, no backbone."""
        from common.checkpoint import load_checkpoint, resumed_file
        from common.data.check import check_label_files, check_shard_fits
        from common.system.cli import progress_line
        from server.preflight import check_cached_features, check_same_network, scored_by_clusters
        from server.run_dir import prepare_run_dir
        from server.settings.first_stage import first_stage_settings

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
            prepare_run_dir(config, unfinished)
        else:
            check_same_network(checkpoint, config, training)
            prepare_run_dir(config, resumed_file(config.resume, checkpoint))

    def unfinished(self, config: RunConfig) -> Path | None:
        """Return a file of a first stage that was stopped, or done, before the student's first checkpoint."""
        from server.run_dir import FIRST_STAGE
        from server.settings.first_stage import has_checkpoint

        folder = Path(config.resume)
        if not config.resume or has_checkpoint(folder) or not has_checkpoint(folder / FIRST_STAGE):
            return None
        return folder / FIRST_STAGE / "metrics.jsonl"  # it lies where a checkpoint's folder would

    def first_stage(self, config: RunConfig, run_dir: Path) -> RunConfig | None:
        """Return the settings of the first stage, None where it is done."""
        from common.checkpoint import load_checkpoint
        from server.run_dir import FIRST_STAGE
        from server.settings.first_stage import first_stage_settings, has_checkpoint

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

    def scorer(self, config: RunConfig) -> Scorer:
        """Score the network's outputs as clusters, matched to classes."""
        from server.evaluation.student import StudentScorer

        return StudentScorer.open(config)

    def training(self, config: RunConfig, classes: ClassTable | None) -> StudentTraining:
        """Train the network of the settings on masks; classes play no part."""
        from common.data.classes import cluster_table
        from server.tasks.student_training import StudentTraining

        self.check_settings(config)
        return StudentTraining.of(config, cluster_table(config.model.clusters))

    def predictor(
        self, saved: Checkpoint, where: str, device: str, cluster: Cluster, site: str | None
    ) -> Predictor:
        """Segment by the network alone: the first stage's backbone plays no part any more."""
        from server.inference.student import StudentPredictor

        return StudentPredictor(saved, where, device, cluster, site)

    def evaluate(self, saved: Checkpoint, where: str, shard: Shard, how: Scoring) -> dict[str, Any]:
        """Score clusters, matched to the shard's classes."""
        from server.evaluation.student import evaluate_student

        return evaluate_student(saved, where, shard, how)
