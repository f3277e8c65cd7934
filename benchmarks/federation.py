"""Runs a federation of task `unsupervised` in this process, for benchmarks that need hundreds of small ones.

Sites and server compute what they compute in a run; nothing travels, nothing is written but caches. Totals of sites
are those of a run to the last digit that the wire keeps.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from client.site import SiteConfig, site_config
from client.work.unsupervised import UnsupervisedSite
from common import wire
from common.features.codes import unit_codes
from common.features.source import Features
from common.models.head import SegmentationHead, load_numpy
from common.models.input_size import fitted_to
from common.settings.schema import RunConfig
from server.loop.sampling import sample_clients
from server.states import ModelState
from server.tasks.unsupervised import UnsupervisedTraining

_KEY = "benchmark"


@dataclass(frozen=True)
class Fit:
    """What a federation left: its state, and what every site sent in the last round, by name."""

    state: ModelState
    updates: Mapping[str, wire.Update]


def open_sites(config: RunConfig, numbers: Sequence[int], state: Path) -> dict[str, SiteConfig]:
    """Return the sites of the run's shards folder by name; ``state`` is a folder for what they keep between rounds."""
    found = [site_config({"partition-id": number, "state": str(state)}, config) for number in numbers]
    return {site.name: site for site in found}


def features_of(config: RunConfig, site: SiteConfig) -> Features:
    """Return a site's features, from its cache where there is one."""
    shard = site.load_shard()
    return site.features(fitted_to(config, shard), shard)


def fit(config: RunConfig, sites: Mapping[str, SiteConfig]) -> Fit:
    """Run all rounds of ``config`` over ``sites``. The last round asks all of them, whatever `sites.per-round` says."""
    training, work = UnsupervisedTraining(config), UnsupervisedSite()
    state = training.initial(features_of(config, next(iter(sites.values()))).channels)
    updates: dict[str, wire.Update] = {}
    for number in range(1, config.rounds + 1):
        wanted = 0 if number == config.rounds else config.sites.per_round
        updates = {}
        for name in sample_clients(sites, wanted, config.seed, number):
            groups, told = training.parts(state, name, number, wire.TRAIN)
            updates[name] = work.train(wire.Task(number, "", _KEY, groups, told), config, sites[name])
        state = training.merge(state, updates, number)
    return Fit(state, updates)


def all_codes(config: RunConfig, state: ModelState, sites: Mapping[str, SiteConfig]) -> np.ndarray:
    """Return the unit codes float32 [N, D] of all patches of all sites under a state's head."""
    parts = [batch for site in sites.values() for batch in _codes(config, state, site)]
    return np.concatenate(parts)


def _codes(config: RunConfig, state: ModelState, site: SiteConfig) -> Iterator[np.ndarray]:
    features = features_of(config, site)
    head = SegmentationHead(features.channels, config.model.dim, config.model.dropout, config.model.nonlinear)
    load_numpy(head, state.head)
    fitted = fitted_to(config, site.load_shard())
    for batch in unit_codes(features, head, fitted):
        yield batch.flatten(0, 1).float().numpy()


def save_fit(path: Path, found: Fit) -> None:
    """Write a fit; it appears whole."""
    arrays = {f"head/{key}": value for key, value in found.state.head.items()}
    arrays |= {f"extra/{key}": value for key, value in found.state.to_extra().items()}
    arrays["centroids"] = found.state.centroids
    for name, update in found.updates.items():
        for key, value in update.groups.get("centroids", {}).items():
            arrays[f"sent/{name}/{key}"] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def load_fit(path: Path) -> Fit:
    """Read what `save_fit` wrote; of the updates, the centroids and their counts are left."""
    parts: dict[str, wire.Arrays] = {"head": {}, "extra": {}}
    sent: dict[str, wire.Arrays] = {}
    with np.load(path, allow_pickle=False) as held:
        centroids = held["centroids"]
        for key in held.files:
            kind, _, rest = key.partition("/")
            if kind in parts:
                parts[kind][rest] = held[key]
            elif kind == "sent":
                name, _, array = rest.rpartition("/")
                sent.setdefault(name, {})[array] = held[key]
    updates = {name: wire.Update(name, "", {"centroids": arrays}) for name, arrays in sent.items()}
    return Fit(ModelState.from_arrays(parts["head"], centroids, parts["extra"]), updates)
