"""Replies of sites where the server may learn totals only.

The plain update of a round (`client.work.unsupervised`) becomes numbers that add up over sites, with clipping and
noise where the settings ask for it, and masked under secure summation (`client.privacy.secure_site`). Clipping of
the head and small counts apply to plain answers as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from client.features import site_features
from client.site import SiteConfig
from common import wire
from common.losses.base import TRAIN
from common.losses.objective import closed_form
from common.privacy.packed_sums import PackedSums, pack, pack_sums, summed_groups
from common.settings.schema import RunConfig

_Handler = Callable[[wire.Task, RunConfig, SiteConfig], wire.Update]


def limited(
    plain: _Handler, phase: str, task: wire.Task, settings: RunConfig, site: SiteConfig
) -> wire.Update:
    """Do the work of a phase by its handler ``plain``, and send as much of what came of it as the settings allow."""
    if not settings.privacy.totals_only:
        return bounded(plain(task, settings, site), task, settings)
    if settings.privacy.noise_multiplier:
        update, summands = _with_noise(plain, phase, task, settings, site)
    else:
        update = bounded(plain(task, settings, site), task, settings)
        weight = {
            "images": float(update.facts["images"]),
            "batches": float(update.facts.get("batches", 1)),
            "uniform": 1.0,
        }[settings.aggregation.weights]
        summands = pack_sums(summed_groups(update.groups), update.metrics, weight)
    groups: wire.Groups = {"noisy": {"vector": pack(summands)}}
    if settings.privacy.secure_sum:
        from client.privacy.secure_site import mask_summands

        groups = mask_summands(summands, task, site)
    return replace(update, groups=groups, metrics={})


def bounded(update: wire.Update, task: wire.Task, settings: RunConfig) -> wire.Update:
    """Return an update whose head moved no further than ``privacy.clip-norm`` and that hides small counts."""
    from client.privacy.private_sums import clipped_change, without_small

    privacy, groups = settings.privacy, dict(update.groups)
    if privacy.clip_norm and "head" in groups:
        trained = [group for group in ("head", "shared") if group in groups]
        new = {f"{group}/{key}": value for group in trained for key, value in groups[group].items()}
        old = {f"{group}/{key}": task.groups[group][key] for group in trained for key in groups[group]}
        for name, value in clipped_change(new, old, privacy.clip_norm).items():
            group, _, key = name.partition("/")
            groups[group] = groups[group] | {key: value}
    if privacy.minimum_count and not privacy.noise_multiplier:
        if "sums" in groups and "counts" in groups["sums"]:
            groups["sums"] = without_small(groups["sums"], "sums", privacy.minimum_count)
        if "centroids" in groups:
            received = task.groups["centroids"]["centroids"]
            groups["centroids"] = without_small(
                groups["centroids"], "centroids", privacy.minimum_count, received
            )
    return replace(update, groups=groups)


def _with_noise(
    plain: _Handler, phase: str, task: wire.Task, settings: RunConfig, site: SiteConfig
) -> tuple[wire.Update, PackedSums]:
    """Return the update without groups, and its noisy numbers."""
    from client.privacy.private_sums import (
        add_noise,
        bounded_cluster_sums,
        bounded_sums,
        noise_key,
        noise_share,
    )

    features = site_features(settings, site, site.load_shard())
    parts: dict[str, PackedSums] = {}
    closed = closed_form(settings)
    if closed is not None and phase == closed.kind:
        parts[closed.kind] = bounded_sums(closed, features, settings)
    else:
        centroids = task.groups["centroids"]["centroids"]
        parts["sums"] = bounded_cluster_sums(features, task.groups["head"], centroids, settings)
    facts: wire.Options = {"images": len(features), "batches": -(-len(features) // settings.local.batch)}
    update = wire.Update(site=site.name, weights_hash=features.weights_hash, facts=facts)
    if phase == TRAIN:
        update = bounded(plain(task, settings, site), task, settings)
        trained = {name: update.groups[name] for name in ("head", "shared") if name in update.groups}
        parts["head"] = {
            f"{group}/{key}": np.asarray(value, dtype=np.float64)
            for group, arrays in trained.items()
            for key, value in arrays.items()
        }
    fewest = 1
    if settings.privacy.secure_sum:
        from client.privacy.secure_site import fewest_sites

        fewest = fewest_sites(task, site)
    return update, add_noise(parts, settings, noise_share(settings, fewest), noise_key())
