"""Chooses the task object and the scorer for a run's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.data.classes import ClassTable
from common.settings.schema import RunConfig
from server.tasks.base import Scorer, Work

if TYPE_CHECKING:
    pass


def work_for(config: RunConfig, classes: ClassTable | None) -> Work:
    """Return the work of the settings' task; raises `UserError` for settings that it cannot honour."""
    if config.task == "unsupervised":
        from server.settings.applicability import refuse_foreign
        from server.tasks.unsupervised import UnsupervisedWork

        refuse_foreign(config)
        return UnsupervisedWork(config)
    from server.tasks.network import NetworkWork

    return NetworkWork.of(config, classes)


def scorer_for(config: RunConfig) -> Scorer:
    """Open the labelled shards that the server scores on."""
    if config.task == "unsupervised":
        from server.evaluation.cluster_scorer import Scorer as ClusterScorer

        return ClusterScorer.open(config)
    from server.evaluation.network_scorer import NetworkScorer

    return NetworkScorer.open(config)
