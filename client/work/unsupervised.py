"""Task `unsupervised` at a site: gradient steps or sums on the features of a frozen backbone."""

from __future__ import annotations

import numpy as np

from client.features import site_features
from client.privacy.totals import limited
from client.site import SiteConfig
from client.state import load_state, save_state
from client.work.base import SiteTask
from client.work.registry import SITE_TASKS
from common import wire
from common.data.check import check_shard_size
from common.errors import UserError
from common.losses.base import CLUSTERS, TRAIN
from common.losses.objective import closed_form
from common.settings.schema import RunConfig
from common.settings.tasks import TASK_FACTS

_FACTS = TASK_FACTS["unsupervised"]


@SITE_TASKS.register(_FACTS.name, summary=_FACTS.summary, facts=_FACTS)
class UnsupervisedSite(SiteTask):
    """See `client.work.base.SiteTask`; what leaves is as much as the privacy settings allow (`client.privacy`)."""

    def hello(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Tell this site's name, size and backbone; build the feature cache on the way."""
        shard = site.load_shard()
        check_shard_size(len(shard), shard.name, settings)
        features = site_features(settings, site, shard)
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
        return limited(train_plainly, str(task.options.get("phase", TRAIN)), task, settings, site)

    def sums(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Return the sums that one exact pass of k-means, or an initialisation, needs."""
        return limited(sum_plainly, CLUSTERS, task, settings, site)

    def evaluate(self, task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
        """Score the received model on this site's own labelled shard: one confusion matrix leaves."""
        from common.evaluation.clusters import evaluate_segmenter, mirrored_features
        from common.evaluation.crf import refine
        from common.models.segmenter import Segmenter

        shard = site.load_eval_shard()
        if shard is None:
            raise UserError(
                "This site has no evaluation shard; set eval-shard in its node config, or eval.where."
            )
        features = site_features(settings, site, shard)
        segmenter = Segmenter.from_arrays(
            task.groups["head"], task.groups["centroids"]["centroids"], features.channels, settings.model
        )
        model = site.apply_weights(settings.model)
        mirrored = mirrored_features(shard, model, settings.seed, site.torch_device())
        found = evaluate_segmenter(
            segmenter,
            features,
            shard,
            model,
            mirrored=mirrored if settings.eval.flip else None,
            refine=refine if settings.eval.crf else None,
        )
        if found.confusion is None:
            raise UserError(
                f"The evaluation shard of {site.name} has no labels; give one whose lines name label files."
            )
        matrix = found.confusion.matrix
        if settings.privacy.minimum_count:
            from client.privacy.private_sums import without_small_cells

            matrix = without_small_cells(matrix, found.patches, settings.privacy.minimum_count)
        return wire.Update(
            site=site.name,
            weights_hash=features.weights_hash,
            groups={"confusion": {"confusion": matrix}},
            metrics={"mean_cosine": found.mean_cosine},
            facts={"images": found.num_images},
        )


def train_plainly(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Do the work of a round (see `common.losses.base`) and return all that came of it."""
    phase = task.options.get("phase", TRAIN)
    if phase == TRAIN:
        return train_by_steps(task, settings, site)
    features = site_features(settings, site, site.load_shard())
    groups: wire.Groups
    metrics: dict[str, float] = {}
    closed = closed_form(settings)
    if closed is not None and phase == closed.kind:
        groups = {closed.kind: closed.site(features)}
    elif phase == CLUSTERS:
        from client.statistics import cluster_sums

        found = cluster_sums(features, task.groups["head"], task.groups["centroids"]["centroids"], settings)
        groups = {"sums": {"sums": found.sums, "counts": found.counts, "cosines": found.cosines}}
        metrics = {"loss": 1 - found.mean_cosine, "mean_cosine": found.mean_cosine}
    else:
        raise UserError(
            f"The server asks for work called {phase!r}, which this site does not know; update the site."
        )
    return wire.Update(
        site=site.name,
        weights_hash=features.weights_hash,
        groups=groups,
        metrics=metrics,
        facts={"images": len(features), "batches": -(-len(features) // settings.local.batch)},
    )


def train_by_steps(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Train the received head on the local shard for one round by gradient steps."""
    from client.statistics import cluster_sums
    from client.work.trainer import train_local

    features = site_features(settings, site, site.load_shard())
    state_dir = site.state_dir / site.name
    head, centroids = task.groups["head"], task.groups["centroids"]["centroids"]
    groups: wire.Groups = {}
    sends_sums = task.options.get("sends", "centroids") == "sums"  # the server says what its rule takes
    if sends_sums:
        # the exact statistics of the model that every site received, not of this site's own next one
        found = cluster_sums(features, head, centroids, settings)
        groups["sums"] = {"sums": found.sums, "counts": found.counts, "cosines": found.cosines}
    state = load_state(state_dir, task.run_key, task.round)
    result = train_local(
        features,
        head,
        centroids,
        settings,
        round_number=task.round,
        site=site.name,
        state=state,
        shared=task.groups.get("shared", {}),
        fixed_centroids=sends_sums,
    )
    save_state(state_dir, task.run_key, task.round, result.state, settings.checkpoint.keep)
    groups |= {
        "head": result.head,
        "centroids": {"centroids": result.centroids, "counts": result.counts.astype(np.int64)},
    }
    if result.shared:
        groups["shared"] = result.shared
    return wire.Update(
        site=site.name,
        weights_hash=features.weights_hash,
        groups=groups,
        metrics=result.metrics,
        facts={"images": result.num_images, "batches": result.num_batches},
    )


def sum_plainly(task: wire.Task, settings: RunConfig, site: SiteConfig) -> wire.Update:
    """Return the sums that one exact Lloyd pass, or an initialisation, needs."""
    from client.statistics import site_sums

    features = site_features(settings, site, site.load_shard())
    return wire.Update(
        site=site.name,
        weights_hash=features.weights_hash,
        groups={"sums": site_sums(str(task.options["what"]), features, task.groups, settings, site.name)},
        facts={"images": len(features)},
    )
