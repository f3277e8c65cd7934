"""The state of a run without labels, which the server holds between rounds, and what of it each site gets."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from common.settings.schema import RunConfig
from common.wire import Arrays, Groups


@dataclass(frozen=True)
class ModelState:
    """The shared model, the sites' private parts, and the server's memory.

    ``centroids`` is [K, D]. ``private`` holds, by site name, the groups that are not shared (see `private_groups`):
    the server keeps them on the sites' behalf, so that a run can be scored and resumed.
    ``memory`` is whatever an aggregation rule remembers (optimizer moments, momentum of the sums).
    ``starts`` [R, M, D] are all sets of centroids that are fitted side by side, where there are several or they are
    joined; ``centroids`` is then the most compact one [M, D] and ``groups`` [M] says to which cluster each belongs.
    """

    head: Arrays
    centroids: np.ndarray
    shared: Arrays = field(default_factory=dict)
    private: dict[str, Groups] = field(default_factory=dict)
    memory: Arrays = field(default_factory=dict)
    starts: np.ndarray | None = None
    groups: np.ndarray | None = None

    def shared_groups(self) -> Groups:
        """Return the shared model."""
        groups: Groups = {"head": self.head, "centroids": {"centroids": self.centroids}}
        if self.groups is not None:
            groups["centroids"]["groups"] = self.groups
        return groups | ({"shared": self.shared} if self.shared else {})

    def groups_for(self, site: str) -> Groups:
        """Return what a site starts its round from: shared parts, its private ones in their place where it has any."""
        return self.shared_groups() | self.private.get(site, {})

    def to_extra(self) -> Arrays:
        """Flatten everything but head and centroids for a checkpoint."""
        extra = {f"shared/{key}": value for key, value in self.shared.items()}
        extra |= {f"memory/{key}": value for key, value in self.memory.items()}
        extra |= {} if self.starts is None else {"starts/centroids": self.starts}
        extra |= {} if self.groups is None else {"groups/groups": self.groups}
        for site, groups in self.private.items():
            for name, arrays in groups.items():
                extra |= {f"site/{site}/{name}/{key}": value for key, value in arrays.items()}
        return extra

    @classmethod
    def from_arrays(cls, head: Arrays, centroids: np.ndarray, extra: Arrays) -> ModelState:
        """Rebuild what `to_extra` flattened."""
        shared, memory = {}, {}
        starts, joined = extra.get("starts/centroids"), extra.get("groups/groups")
        private: dict[str, Groups] = {}
        for key, value in extra.items():
            kind, rest = key.split("/", 1)
            if kind == "shared":
                shared[rest] = value
            elif kind == "memory":
                memory[rest] = value
            elif kind == "site":
                site, name, array = rest.split("/", 2)
                private.setdefault(site, {}).setdefault(name, {})[array] = value
        return cls(head, centroids, shared, private, memory, starts, joined)


def private_groups(config: RunConfig) -> tuple[str, ...]:
    """Return which groups stay with each site under ``centroids.share``.

    What an objective trains beside the head (``shared``) goes where the head goes.
    """
    head, centroids = ("head", "shared"), ("centroids",)
    return {"both": (), "head": centroids, "centroids": head, "none": head + centroids}[
        config.centroids.share
    ]
