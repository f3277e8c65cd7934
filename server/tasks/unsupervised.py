"""Task `unsupervised`: a head on a frozen backbone and K semantic centroids, without labels.

Hooks import what they need themselves: to check settings must not take the time of loading torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.settings.tasks import TASK_FACTS
from server.tasks.registry import SERVER_TASKS

if TYPE_CHECKING:
    from common.checkpoint import Checkpoint
    from common.data.classes import ClassTable
    from common.data.manifest import Shard
    from common.settings.schema import RunConfig
    from server.evaluation.scorer import Scorer, Scoring
    from server.inference.base import Cluster, Predictor
    from server.tasks.base import Training

_FACTS = TASK_FACTS["unsupervised"]


@SERVER_TASKS.register(_FACTS.name, summary=_FACTS.summary, facts=_FACTS)
class UnsupervisedTask:
    """See `server.tasks.base.ServerTask` for each hook."""

    def check_settings(self, config: RunConfig) -> None:
        """Refuse settings of other tasks; conflicts among its own are refused while settings are loaded."""
        from server.settings.applicability import refuse_foreign

        refuse_foreign(config)

    def check_run(self, config: RunConfig, shards: Sequence[Shard]) -> None:
        """Check shards, features, weights and checkpoint."""
        from server.preflight import check_cluster_run

        self.check_settings(config)
        check_cluster_run(config, shards)

    def unfinished(self, config: RunConfig) -> Path | None:
        """Nothing comes before the first round that could be stopped."""
        return None

    def first_stage(self, config: RunConfig, run_dir: Path) -> RunConfig | None:
        """No run comes before this one."""
        return None

    def begin_run(self, config: RunConfig, run_dir: Path, unfinished: Path | None) -> None:
        """Nothing to check or to take over."""

    def scorer(self, config: RunConfig) -> Scorer:
        """Score clusters, matched to classes."""
        from server.evaluation.clusters import ClusterScorer

        return ClusterScorer.open(config)

    def training(self, config: RunConfig, classes: ClassTable | None) -> Training:
        """Train head and centroids; classes play no part."""
        from server.tasks.unsupervised_training import UnsupervisedTraining

        self.check_settings(config)
        return UnsupervisedTraining(config)

    def predictor(
        self, saved: Checkpoint, where: str, device: str, cluster: Cluster, site: str | None
    ) -> Predictor:
        """Segment by the shared head, or by that of a site which keeps its own."""
        from server.inference.clusters import ClusterPredictor

        return ClusterPredictor(saved, where, device, cluster, site)

    def evaluate(self, saved: Checkpoint, where: str, shard: Shard, how: Scoring) -> dict[str, Any]:
        """Score clusters: of the shared model, of one site's, or of every site's by itself."""
        from server.evaluation.clusters import evaluate_clusters

        return evaluate_clusters(saved, where, shard, how)
