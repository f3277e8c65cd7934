"""Facts of the tasks: what other code has to know about a run's task, one fact for each question.

Whoever would compare a task's name asks for a fact instead (`RunConfig.facts`). What a task does stands in
`server.tasks` and `client.work`, in a file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TaskFacts:
    """What is true of a task, at the server and at every site.

    Attributes:
        name: its name in the settings.
        summary: a line about it.
        settings: keys, or whole sections, that act in this task and not in every one. A key that any task claims
            by itself acts only in the tasks that do, whoever claims its section.
        frozen_backbone: sites cache the features of a frozen backbone; else a whole network travels.
        private_totals: secure aggregation and noise cover what its sites send.
        opens_labels: sites open the labels of what they train on.
        pretrains: the server trains on labelled source images before the first round.
        self_trains: sites keep the networks that label their pixels on disk.
        from_clusters: a network learns the clusters of a first stage on a frozen backbone, so that its outputs have
            no names of classes.
    """

    name: str
    summary: str
    settings: frozenset[str]
    frozen_backbone: bool = False
    private_totals: bool = False
    opens_labels: bool = False
    pretrains: bool = False
    self_trains: bool = False
    from_clusters: bool = False

    @property
    def caches_features(self) -> bool:
        """Whether sites need the frozen backbone, and room for its features."""
        return self.frozen_backbone or self.from_clusters


# How a network travels, and how its images are read.
_NETWORK_MEANS = frozenset({"wire.differences", "simulation.readers", "simulation.decoded"})

_NETWORK_SETTINGS = _NETWORK_MEANS | {
    "centroids.share",
    "network",
    "transforms",
    "sgd",
    "reduction",
    "clusters",
    "style",
}

_UNSUPERVISED_SETTINGS = (
    frozenset(
        {"model", "cache", "loss", "things", "codes", "refine", "privacy", "centroids", "centroids.share"}
    )
    | {"eval.matching", "eval.published", "eval.crf"}
    | {"local.lr", "local.centroid-lr", "local.neighbours", "local.neighbour-dropout"}
    | {"local.keep-optimizer", "local.prox-parameters", "local.moon-weight", "local.moon-temperature"}
    | {"aggregation.keep-least-moved"}
)

_TASKS = (
    TaskFacts(
        "unsupervised",
        "a head on a frozen backbone and semantic centroids, without labels",
        _UNSUPERVISED_SETTINGS,
        frozen_backbone=True,
        private_totals=True,
    ),
    TaskFacts(
        "supervised",
        "a whole segmentation network, trained with the labels of the sites",
        _NETWORK_SETTINGS,
        opens_labels=True,
    ),
    TaskFacts(
        "adaptation",
        "a whole network, pretrained on labelled source images and adapted to sites without labels",
        _NETWORK_SETTINGS | {"style.mix", "teacher", "source"},
        pretrains=True,
        self_trains=True,
    ),
    TaskFacts(
        "student",
        "a whole network that learns, without labels, the clusters that task unsupervised finds first",
        _UNSUPERVISED_SETTINGS
        | _NETWORK_MEANS
        | {"network", "transforms", "sgd", "reduction", "teacher", "student"},
        self_trains=True,
        from_clusters=True,
    ),
)

# The facts of every task, by name.
TASK_FACTS: Mapping[str, TaskFacts] = {facts.name: facts for facts in _TASKS}
