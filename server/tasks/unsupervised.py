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
    from server.evaluation.options import Scoring
    from server.evaluation.scorer import Scorer
    from server.inference.base import Cluster, Exported, Predictor, Size
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
        from server.preflight.clusters import check_cluster_run

        self.check_settings(config)
        check_cluster_run(config, shards)

    def unfinished(self, config: RunConfig) -> Path | None:
        """Nothing comes before the first round that could be stopped."""
        return None

    def begin_run(self, config: RunConfig, run_dir: Path, unfinished: Path | None) -> None:
        """Nothing to check or to take over."""

    def scorer(self, config: RunConfig) -> Scorer:
        """Score clusters, matched to classes."""
        from server.evaluation.cluster_scorer import ClusterScorer

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
        from common.models.site_models import chosen_model
        from server.inference.base import refuse_cluster
        from server.inference.clusters import ClusterPredictor

        refuse_cluster(saved, where, cluster)
        return ClusterPredictor(chosen_model(saved, where, site), where, device)

    def evaluate(self, saved: Checkpoint, where: str, shard: Shard, how: Scoring) -> dict[str, Any]:
        """Score clusters: of the shared model, of one site's, or of every site's by itself."""
        from common.models.site_models import chosen_model, unshared
        from server.evaluation.clusters import evaluate_clusters, evaluate_own_models
        from server.evaluation.options import ALL_SITES
        from server.inference.base import refuse_cluster

        refuse_cluster(saved, where, how.cluster)
        every = how.site == ALL_SITES and bool(unshared(saved))
        score = evaluate_own_models if every else evaluate_clusters
        return score(
            saved if every else chosen_model(saved, where, how.site),
            where,
            shard,
            crf=how.crf,
            flip=how.flip,
            matching=how.matching,
            protocol=how.protocol,
            cache_dir=how.cache_dir,
            device=how.device,
            progress=how.progress,
        )

    def export(
        self, saved: Checkpoint, where: str, cluster: Cluster, site: str | None, size: Size | None
    ) -> Exported:
        """Export backbone, head and centroids as one module."""
        from server.inference.export import export_clusters

        return export_clusters(saved, where, cluster, site, size)
