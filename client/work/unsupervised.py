"""Task `unsupervised` at a site: gradient steps or sums on the features of a frozen backbone.

As much leaves as the privacy settings allow. Clipping of the head and small counts apply to every answer. Where the
server may learn totals only, an answer becomes numbers that add up over sites. Noise comes on top where the settings
ask for it, and masks under secure aggregation (`client.privacy.secure_site`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from client.privacy import private_sums
from client.site import SiteConfig
from client.state import load_state, save_state
from client.statistics import cluster_sums, received_head, sums_of_starts
from client.work.base import SITE_TASKS, Handler, SiteTask
from common import wire
from common.data.check import check_shard_size
from common.errors import UserError
from common.features.source import Features
from common.losses.base import CLUSTERS, TRAIN, closed_form
from common.models.input_size import fitted_to
from common.privacy.packed_sums import PackedSums, pack, pack_sums, summed_groups
from common.settings.schema import RunConfig
from common.settings.tasks import TASK_FACTS

_FACTS = TASK_FACTS["unsupervised"]


@SITE_TASKS.register(_FACTS.name, summary=_FACTS.summary, facts=_FACTS)
class UnsupervisedSite(SiteTask):
    """A head and centroids on frozen features."""

    def hello(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Tell this site's name, size and backbone; build the feature cache on the way."""
        shard = site.load_shard()
        check_shard_size(len(shard), shard.name, settings)
        if closed_form(settings) is not None or settings.centroids.polish_passes:
            site.refuse_few_images(len(shard), settings)  # before an hour of features
        features = site.features(fitted_to(settings, shard), shard)
        return wire.Update(
            site=site.name,
            weights_hash=features.weights_hash,
            facts={
                "images": len(features),
                "channels": features.channels,
                "grid-height": features.grid[0],
                "grid-width": features.grid[1],
            },
        )

    def train(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Do the work of the phase that the server names."""
        settings = fitted_to(settings, site.load_shard())
        return limited(work_of_round, str(task.options.get("phase", TRAIN)), task, settings, site)

    def sums(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Return the sums that one exact pass of k-means, or an initialisation, needs."""
        settings = fitted_to(settings, site.load_shard())
        return limited(sum_up, str(task.options["what"]), task, settings, site)

    def evaluate(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Score the received model on this site's own labelled shard: one confusion matrix leaves."""
        from common.evaluation.clusters import (
            evaluate_segmenter,
            mirrored_features,
            refinement,
            segmenting_model,
        )
        from common.models.segmenter import Segmenter

        shard = site.load_eval_shard()
        if shard is None:
            raise UserError(
                "This site has no evaluation shard; set eval-shard in its node config, or eval.where."
            )
        settings = fitted_to(settings, shard)
        model = segmenting_model(settings)
        features = site.features(settings.model_copy(update={"model": model}), shard)
        segmenter = Segmenter.from_groups(task.groups, features.channels, settings, model=model)
        model = site.apply_weights(model)
        mirrored = mirrored_features(shard, model, settings.seed, site.torch_device())
        found = evaluate_segmenter(
            segmenter,
            features,
            shard,
            model,
            mirrored=mirrored if settings.eval.flip else None,
            refine=refinement(settings, model, settings.eval.crf),
        )
        if found.confusion is None:
            raise UserError(
                f"The evaluation shard of {site.name} has no labels; give one whose lines name label files."
            )
        matrix = found.confusion.matrix
        if settings.privacy.minimum_count:
            matrix = private_sums.without_small_cells(matrix, found.patches, settings.privacy.minimum_count)
        return wire.Update(
            site=site.name,
            weights_hash=features.weights_hash,
            groups={"confusion": {"confusion": matrix}},
            metrics={"mean_cosine": found.mean_cosine},
            facts={"images": found.num_images},
        )


def work_of_round(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Do the work of the phase that the server names (see `common.losses.base`); return all that came of it."""
    phase = task.options.get("phase", TRAIN)
    if phase == TRAIN:
        return train_by_steps(task, settings, site)
    features = site.features(settings)
    closed = closed_form(settings)
    if closed is not None and phase == closed.kind:
        return _update_of(features, settings, site, {closed.kind: closed.site(features)})
    if phase == CLUSTERS:
        sums = _received_sums(features, task, settings)
        cosine = float(sums["cosines"].sum()) / max(int(sums["counts"].sum()), 1)
        metrics = {"loss": 1 - cosine, "mean_cosine": cosine}
        return replace(_update_of(features, settings, site, {"sums": sums}), metrics=metrics)
    raise UserError(
        f"The server asks for work called {phase!r}, which this site does not know; update the site."
    )


def train_by_steps(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Train the received head on the local shard for one round by gradient steps."""
    from client.work.oracle import label_signal
    from client.work.trainer import train_local  # rounds of sums do without

    features = site.features(settings)
    state_dir = site.state_dir / site.name
    groups: wire.Groups = {}
    sends_sums = task.options.get("sends", "centroids") == "sums"  # the server says what its rule takes
    if sends_sums:
        # the exact statistics of the model that every site received, not of this site's own next one
        groups["sums"] = _received_sums(features, task, settings)
    result = train_local(
        features,
        task.groups["head"],
        task.groups["centroids"]["centroids"],
        settings,
        round_number=task.round,
        site=site.name,
        state=load_state(state_dir, task.run_key, task.round),
        shared=task.groups.get("shared", {}),
        fixed_centroids=sends_sums,
        labels=lambda: label_signal(site, settings, features.grid),
    )
    save_state(state_dir, task.run_key, task.round, result.state, settings.checkpoint.keep)
    groups |= {
        "head": result.head,
        "centroids": {"centroids": result.centroids, "counts": result.counts.astype(np.int64)},
    }
    if result.shared:
        groups["shared"] = result.shared
    return replace(_update_of(features, settings, site, groups), metrics=result.metrics)


def sum_up(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Return the sums of one exact Lloyd pass, or those that a closed form starts from, for a site that came late."""
    what, closed = task.options["what"], closed_form(settings)
    features = site.features(settings)
    if closed is not None and what == closed.kind:
        return _update_of(features, settings, site, {closed.kind: closed.site(features)})
    if what != CLUSTERS:
        raise ValueError(f"Site {site.name} was asked for sums of {what!r}; it knows {CLUSTERS!r}.")
    update = _update_of(features, settings, site, {"sums": _received_sums(features, task, settings)})
    return replace(update, facts={"images": len(features)})


def _received_sums(features: Features, task: wire.Task, settings: RunConfig) -> wire.Arrays:
    """Return the sums of one exact pass of k-means under the model that came, of all its starts if it has any."""
    head, arrays = task.groups["head"], task.groups["centroids"]
    if "starts" in task.options:
        received = received_head(features, head, settings)
        return sums_of_starts(features, received, arrays, int(task.options["starts"]), settings)
    return cluster_sums(features, head, arrays["centroids"], settings).arrays()


def _update_of(features: Features, settings: RunConfig, site: SiteConfig, groups: wire.Groups) -> wire.Update:
    batches = -(-len(features) // settings.local.batch)
    facts: wire.Options = {"images": len(features), "batches": batches}
    return wire.Update(site=site.name, weights_hash=features.weights_hash, groups=groups, facts=facts)


def limited(
    plain: Handler, phase: str, task: wire.Task, settings: RunConfig, site: SiteConfig
) -> wire.Update:
    """Do the work of a phase by its handler ``plain``, and send as much of what came of it as the settings allow."""
    if not settings.privacy.totals_only:
        return bounded(plain(task, settings, site), task, settings, site)
    if settings.privacy.noise_multiplier:
        update, summands = _with_noise(plain, phase, task, settings, site)
    else:
        update = bounded(plain(task, settings, site), task, settings, site)
        weights = {
            "images": float(update.facts["images"]),
            "batches": float(update.facts.get("batches", 1)),
            "uniform": 1.0,
        }
        weight = weights[settings.aggregation.weights]
        summands = pack_sums(summed_groups(update.groups), update.metrics, weight)
    groups: wire.Groups = {"noisy": {"vector": pack(summands)}}
    if settings.privacy.secure_sum:
        from client.privacy.secure_site import mask_summands

        groups, context = mask_summands(summands, task, site, phase)
        update = replace(update, facts=update.facts | {"context": context})
    return replace(update, groups=groups, metrics={})


def bounded(update: wire.Update, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Return an update whose head moved no further than ``privacy.clip-norm`` and that hides small counts.

    Raises `UserError` for plain sums of too few images.
    """
    privacy, groups = settings.privacy, dict(update.groups)
    closed = closed_form(settings)
    if {"sums", closed.kind if closed else ""} & groups.keys():
        site.refuse_few_images(int(update.facts["images"]), settings)
    if privacy.clip_norm and "head" in groups:
        clipped = private_sums.clipped_change(_trained(groups), _trained(task.groups), privacy.clip_norm)
        for name, value in clipped.items():
            group, _, key = name.partition("/")
            groups[group] = groups[group] | {key: value}
    if privacy.minimum_count and not privacy.noise_multiplier:  # noise hides them already
        if "counts" in groups.get("sums", {}):
            groups["sums"] = private_sums.without_small(groups["sums"], "sums", privacy.minimum_count)
        if "centroids" in groups:
            received = task.groups["centroids"]["centroids"]
            groups["centroids"] = private_sums.without_small(
                groups["centroids"], "centroids", privacy.minimum_count, received
            )
    return replace(update, groups=groups)


def _trained(groups: wire.Groups) -> wire.Arrays:
    """Return what steps have trained, the head and the objective's own arrays, by ``group/key``."""
    trained = [name for name in ("head", "shared") if name in groups]
    return {f"{name}/{key}": value for name in trained for key, value in groups[name].items()}


def _with_noise(
    plain: Handler, phase: str, task: wire.Task, settings: RunConfig, site: SiteConfig
) -> tuple[wire.Update, PackedSums]:
    """Return the update without groups, and its noisy numbers."""
    features = site.features(settings)
    parts: dict[str, PackedSums] = {}
    closed = closed_form(settings)
    if closed is not None and phase == closed.kind:
        parts[closed.kind] = private_sums.bounded_sums(closed, features, settings)
    else:
        centroids = task.groups["centroids"]["centroids"]
        parts["sums"] = private_sums.bounded_cluster_sums(features, task.groups["head"], centroids, settings)
    update = _update_of(features, settings, site, {})
    if phase == TRAIN:
        update = bounded(plain(task, settings, site), task, settings, site)
        parts["head"] = {
            name: np.asarray(value, dtype=np.float64) for name, value in _trained(update.groups).items()
        }
    fewest = 1
    if settings.privacy.secure_sum:
        from client.privacy.secure_site import fewest_sites

        fewest = fewest_sites(task, site)
    return update, private_sums.add_noise(
        parts, settings, private_sums.noise_share(settings, fewest), private_sums.noise_key()
    )
