"""What tasks `supervised` and `adaptation` have in common: a whole network of named classes.

Hooks import what they need themselves: to check settings must not take the time of loading torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.checkpoint import Checkpoint
    from common.data.classes import ClassTable
    from common.data.manifest import Shard
    from common.settings.schema import RunConfig
    from server.evaluation.scorer import Scorer, Scoring
    from server.inference.base import Cluster, Predictor
    from server.tasks.network_training import NetworkTraining


class NetworkTask:
    """See `server.tasks.base.ServerTask` for each hook."""

    def check_settings(self, config: RunConfig) -> None:
        """Refuse settings of other tasks, and those that contradict one another."""
        from server.settings.network_rules import refuse_conflicts

        refuse_conflicts(config)

    def check_run(self, config: RunConfig, shards: Sequence[Shard]) -> None:
        """Check shards, labels, source and checkpoint."""
        from server.preflight import check_network_run, need_classes

        table = need_classes(config)
        training = self.training(config, table)  # conflicting settings and missing weights show here
        training.greeting()  # a crucial class that the table does not name shows here
        check_network_run(config, shards, table, training)

    def unfinished(self, config: RunConfig) -> Path | None:
        """Nothing comes before the first round that could be stopped."""
        return None

    def first_stage(self, config: RunConfig, run_dir: Path) -> RunConfig | None:
        """No run comes before this one."""
        return None

    def begin_run(self, config: RunConfig, run_dir: Path, unfinished: Path | None) -> None:
        """Nothing to check or to take over."""

    def scorer(self, config: RunConfig) -> Scorer:
        """Score named classes, on any number of test sets."""
        from server.evaluation.networks import NetworkScorer

        return NetworkScorer.open(config)

    def training(self, config: RunConfig, classes: ClassTable | None) -> NetworkTraining:
        """Train the network of the settings."""
        from server.tasks.network_training import NetworkTraining

        self.check_settings(config)
        return NetworkTraining.of(config, classes)

    def predictor(
        self, saved: Checkpoint, where: str, device: str, cluster: Cluster, site: str | None
    ) -> Predictor:
        """Segment by the shared network, or by those of style clusters."""
        from server.inference.networks import NetworkPredictor

        return NetworkPredictor(saved, where, device, cluster, site)

    def evaluate(self, saved: Checkpoint, where: str, shard: Shard, how: Scoring) -> dict[str, Any]:
        """Score named classes; nothing is matched."""
        from server.evaluation.networks import evaluate_network_checkpoint

        return evaluate_network_checkpoint(saved, where, shard, how)
