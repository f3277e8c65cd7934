"""Chooses the task object and the scorer for a run's settings."""

from __future__ import annotations

from collections.abc import Sequence

from common.data.classes import ClassTable
from common.data.manifest import Shard
from common.settings.schema import RunConfig
from server.tasks.base import Scorer, Work


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


def check_task(config: RunConfig, shards: Sequence[Shard]) -> None:
    """Raise `UserError` for the first thing that would stop a simulation of sites with these shards."""
    if config.task == "unsupervised":
        from server.preflight.clusters import check_cluster_run

        check_cluster_run(config, shards)
        return
    from server.preflight.networks import check_network_run, need_classes
    from server.tasks.network import NetworkWork

    table = need_classes(config)
    work = NetworkWork.of(config, table)  # settings that conflict and weights that are missing show here
    work.greeting()
    check_network_run(config, shards, table, work)
