"""Chooses the task object and the scorer for a run's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.data.classes import ClassTable
from common.data.manifest import Shard
from common.errors import UserError
from common.settings.load import load_config
from common.settings.schema import RunConfig
from server.settings.registered import check_names, rule_conflict
from server.tasks.base import Scorer, Work


def load_settings(*layers: Mapping[str, Any]) -> RunConfig:
    """Merge and check layers of settings as the server does: names, and what does not go together.

    Raises `UserError` as `load_config` does, which a site uses.
    """
    config = load_config(*layers)
    check_names(config)
    if conflict := rule_conflict(config):
        raise UserError(f"The settings do not fit together: {conflict}.")
    return config


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
        from server.evaluation.cluster_scorer import ClusterScorer

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
