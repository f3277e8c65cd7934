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
    ``starts`` are all sets of centroids that are fitted side by side, ``centroids`` [S, M, D] and the cluster of each,
    ``groups`` [S, M]. ``centroids`` is then the chosen one [M, D], and ``joined`` says to which cluster each belongs
    (``groups`` [M]) and whether codes are ``centered`` [1] in their image.
    """

    head: Arrays
    centroids: np.ndarray
    shared: Arrays = field(default_factory=dict)
    private: dict[str, Groups] = field(default_factory=dict)
    memory: Arrays = field(default_factory=dict)
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
            kind, rest = key.split("/", 1)
            if kind in parts:
                parts[kind][rest] = value
            else:
                site, name, array = rest.split("/", 2)
                private.setdefault(site, {}).setdefault(name, {})[array] = value
        return cls(head, centroids, private=private, **parts)


def private_groups(config: RunConfig) -> tuple[str, ...]:
    """Return which groups stay with each site under ``centroids.share``.

    What an objective trains beside the head (``shared``) goes where the head goes.
    """
    head, centroids = ("head", "shared"), ("centroids",)
    return {"both": (), "head": centroids, "centroids": head, "none": head + centroids}[
        config.centroids.share
    ]
