"""The states of runs, which the server holds between rounds, and what of them each site gets.

`NetworkState` is a whole network as one flat dict by state-dict name. Every name belongs to one of three: shared by
all, a cluster's own, or a site's own. The shared dict holds all of them: for names that are not shared it has the
mean over their owners, which is what a newcomer gets. `ModelState` is a head with centroids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from common.settings.schema import RunConfig
from common.styles.clusters import StyleClusters
from common.wire import Arrays, Groups

# The teacher of sites that belong to no cluster.
EVERYONE = "all"


@dataclass(frozen=True)
class Layout:
    """Which names of a network belong to whom; by module type, never by parts of names."""

    parameters: frozenset[str]
    statistics: frozenset[str]
    cluster: frozenset[str] = frozenset()
    site: frozenset[str] = frozenset()

    @property
    def local_only(self) -> bool:
        """Whether sites share nothing at all: then nobody may learn from another, by way of a mean either."""
        return self.site == self.parameters | self.statistics

    @property
    def shared(self) -> frozenset[str]:
        """Names that all sites share."""
        return (self.parameters | self.statistics) - self.cluster - self.site

    def split(self, model: Mapping[str, np.ndarray]) -> dict[str, Arrays]:
        """Cut a flat network into the two groups that travel."""
        return {
            "weights": {key: value for key, value in model.items() if key in self.parameters},
            "statistics": {key: value for key, value in model.items() if key in self.statistics},
        }


@dataclass(frozen=True)
class NetworkState:
    """The shared network, the clusters' and sites' own parts, and the server's memory.

    ``model`` is the flat network (float32, by name). ``clusters`` and ``private`` hold the names that clusters and
    sites have for themselves. ``grouping`` says which site is in which cluster. ``pretrained`` is the model
    that adaptation started from; ``teachers`` the labelling models, by cluster or for everyone, and
    ``averaged`` how many models a running mean has seen. ``memory`` is the server optimiser's. ``weights`` says
    what each site in ``private`` last counted for: its part of the mean, also in rounds in which it is absent.
    ``trained`` counts the rounds in which a site took steps that were merged.
    """

    model: Arrays
    clusters: dict[int, Arrays] = field(default_factory=dict)
    private: dict[str, Arrays] = field(default_factory=dict)
    grouping: StyleClusters | None = None
    pretrained: Arrays = field(default_factory=dict)
    teachers: dict[str, Arrays] = field(default_factory=dict)
    averaged: int = 0
    memory: Arrays = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)

    def cluster_of(self, site: str) -> int | None:
        """Return a site's cluster, None where there are none."""
        return None if self.grouping is None else self.grouping.assignment.get(site)

    def cluster_model(self, cluster: int | None) -> Arrays:
        """Return the whole network of a cluster; the shared one for None."""
        return self.model if cluster is None else self.model | self.clusters.get(cluster, {})

    def model_for(self, site: str) -> Arrays:
        """Return the whole network that a site starts from."""
        return self.cluster_model(self.cluster_of(site)) | self.private.get(site, {})

    def teacher_for(self, site: str) -> Arrays:
        """Return the labelling network of a site: its cluster's, else everyone's, else the pretrained one."""
        for name in (str(self.cluster_of(site)), EVERYONE):
            if name in self.teachers:
                return self.teachers[name]
        return self.pretrained

    def to_extra(self) -> Arrays:
        """Flatten everything but the shared network for a checkpoint."""
        extra = {f"pretrained/{key}": value for key, value in self.pretrained.items()}
        extra |= {f"memory/{key}": value for key, value in self.memory.items()}
        extra |= {f"weight/{name}": np.array(value, dtype=np.float64) for name, value in self.weights.items()}
        extra |= {f"trained/{name}": np.array(count, dtype=np.int64) for name, count in self.trained.items()}
        # counts travel as arrays: a checkpoint holds nothing else
        extra["averaged"] = np.array(self.averaged, dtype=np.int64)
        named = [("cluster", str(key), arrays) for key, arrays in self.clusters.items()]
        named += [("site", name, arrays) for name, arrays in self.private.items()]
        named += [("teacher", name, arrays) for name, arrays in self.teachers.items()]
        for kind, name, arrays in named:
            extra |= {f"{kind}/{name}/{key}": value for key, value in arrays.items()}
        if self.grouping is not None:
            extra |= {f"grouping/{key}": value for key, value in self.grouping.to_arrays().items()}
        return extra

    @classmethod
    def from_arrays(cls, model: Arrays, extra: Arrays) -> NetworkState:
        """Rebuild what `to_extra` flattened."""
        parts: dict[str, dict[str, Arrays]] = {"cluster": {}, "site": {}, "teacher": {}}
        flat: dict[str, Arrays] = {
            "pretrained": {},
            "memory": {},
            "grouping": {},
            "weight": {},
            "trained": {},
        }
        for key, value in extra.items():
            kind, _, rest = key.partition("/")
            if kind in parts:
                name, _, array = rest.partition("/")
                parts[kind].setdefault(name, {})[array] = value
            elif kind in flat:
                flat[kind][rest] = value
        return cls(
            model=model,
            clusters={int(name): arrays for name, arrays in parts["cluster"].items()},
            private=parts["site"],
            grouping=StyleClusters.from_arrays(flat["grouping"]) if flat["grouping"] else None,
            pretrained=flat["pretrained"],
            teachers=parts["teacher"],
            averaged=int(extra["averaged"].item()) if "averaged" in extra else 0,  # a file makes it [1]
            memory=flat["memory"],
            weights={name: float(value.item()) for name, value in flat["weight"].items()},
            trained={name: int(value.item()) for name, value in flat["trained"].items()},
        )

    def with_clusters(self, grouping: StyleClusters, layout: Layout) -> NetworkState:
        """Return a state in which every cluster starts from the shared values of its own names."""
        start = {key: self.model[key] for key in sorted(layout.cluster)}
        return replace(
            self, grouping=grouping, clusters={cluster: dict(start) for cluster in range(grouping.k)}
        )


@dataclass(frozen=True)
class ModelState:
    """The shared model, the sites' private parts, and the server's memory.

    ``centroids`` is [K, D]. ``private`` holds, by site name, the groups that are not shared (see `private_groups`):
    the server keeps them on the sites' behalf, so that a run can be scored and resumed.
    ``solved`` says that a closed form has made the head. ``memory`` is whatever an aggregation rule remembers
    (optimizer moments, momentum of the sums).
    ``starts`` are all sets of centroids that are fitted side by side, ``centroids`` [S, M, D] and the cluster of each,
    ``groups`` [S, M]. ``centroids`` is then the chosen one [M, D], and ``joined`` says to which cluster each belongs
    (``groups`` [M]) and whether codes are ``centered`` [1] in their image.
    """

    head: Arrays
    centroids: np.ndarray
    shared: Arrays = field(default_factory=dict)
    private: dict[str, Groups] = field(default_factory=dict)
    memory: Arrays = field(default_factory=dict)
    solved: bool = False
    starts: Arrays = field(default_factory=dict)
    joined: Arrays = field(default_factory=dict)

    def shared_groups(self) -> Groups:
        """Return the shared model."""
        groups: Groups = {"head": self.head, "centroids": {"centroids": self.centroids} | self.joined}
        return groups | ({"shared": self.shared} if self.shared else {})

    def groups_for(self, site: str) -> Groups:
        """Return what a site starts its round from: shared parts, its private ones in their place where it has any."""
        return self.shared_groups() | self.private.get(site, {})

    def to_extra(self) -> Arrays:
        """Flatten everything but head and centroids for a checkpoint."""
        extra = {f"shared/{key}": value for key, value in self.shared.items()}
        extra |= {f"memory/{key}": value for key, value in self.memory.items()}
        extra |= {f"starts/{key}": value for key, value in self.starts.items()}
        extra |= {f"joined/{key}": value for key, value in self.joined.items()}
        for site, groups in self.private.items():
            for name, arrays in groups.items():
                extra |= {f"site/{site}/{name}/{key}": value for key, value in arrays.items()}
        return extra

    @classmethod
    def from_arrays(cls, head: Arrays, centroids: np.ndarray, extra: Arrays) -> ModelState:
        """Rebuild what `to_extra` flattened."""
        parts: dict[str, Arrays] = {kind: {} for kind in ("shared", "memory", "starts", "joined")}
        private: dict[str, Groups] = {}
        for key, value in extra.items():
            # keys are part of the file format: changing one breaks old checkpoints
            kind, rest = key.split("/", 1)
            if kind in parts:
                parts[kind][rest] = value
            else:
                site, name, array = rest.split("/", 2)
                private.setdefault(site, {}).setdefault(name, {})[array] = value
        shared, memory, starts, joined = parts.values()
        return cls(head, centroids, shared, private, memory, starts=starts, joined=joined)


def private_groups(config: RunConfig) -> tuple[str, ...]:
    """Return which groups stay with each site under ``centroids.share``.

    What an objective trains beside the head (``shared``) goes where the head goes.
    """
    head, centroids = ("head", "shared"), ("centroids",)
    return {"both": (), "head": centroids, "centroids": head, "none": head + centroids}[
        config.centroids.share
    ]
