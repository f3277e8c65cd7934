"""Which settings do not go together when a whole network is trained?

A setting of another task is refused (`foreign_settings`), for someone set it for a reason, and so is one that
contradicts another. One that merely lacks another, as ``reduction.power`` without its kind, is not: it is switched
by ``--set`` on top of a recipe.
"""

from __future__ import annotations

from common.errors import UserError
from common.settings.network import Style
from common.settings.schema import RunConfig
from common.styles.style import style_kind
from server.settings.applicability import refuse_foreign


def refuse_conflicts(config: RunConfig) -> None:
    """Raise `UserError` for the first setting that task `supervised` or `adaptation` cannot honour."""
    refuse_foreign(config)
    conflict = _share_conflict(config) or _nothing_learnt(config) or _cluster_conflict(config)
    if conflict:
        raise UserError(conflict)


def refuse_other_form(kept: RunConfig, config: RunConfig) -> None:
    """Raise `UserError` where a run cannot go on from the state of one with the settings ``kept``."""

    def form(of: RunConfig) -> dict[str, str]:
        return {
            "task": of.task,
            "clusters.layers": of.clusters.layers,
            "network.batchnorm": of.network.batchnorm,
            "centroids.share": of.centroids.share,
            "aggregation.optimizer": of.aggregation.optimizer,
        } | (_measure(of.style) if of.clusters.layers != "none" else {})

    before, now = form(kept), form(config)
    for key, value in before.items():
        if now[key] != value:
            raise UserError(
                f"The checkpoint was made with {key} = '{value}', this run has '{now[key]}'; use the recipe that the "
                "checkpoint was made with."
            )


def network_plan(config: RunConfig, classes: int) -> str:
    """Return in a line what a run will train, and from which round on what begins late."""
    clusters, teacher = config.clusters, config.teacher
    words = [
        f"DeepLabV3-MobileNetV2 at stride {config.network.output_stride} with {classes} classes",
        f"{config.reduction.kind} loss",
        f"lr {config.sgd.lr:g} {config.sgd.schedule}",
        f"batch norms {config.network.batchnorm}",
        f"clusters {clusters.layers}",
    ]
    if clusters.layers != "none":
        words[-1] += _begins(clusters.bootstrap_rounds + 1, config.rounds)
    if config.facts.self_trains:
        words.append(f"teacher updated: {teacher.update}")
        if teacher.update == "mean":
            words[-1] += _begins(teacher.start + 1, config.rounds)
    return ", ".join(words)


def _begins(first: int, rounds: int) -> str:
    """Say when something begins, where that is not at once; accepted though it comes too late, as when a recipe is
    tried with fewer rounds.
    """
    if first == 1:
        return ""
    return f" from round {first}" + (", which this run does not reach" if first > rounds else "")


def _share_conflict(config: RunConfig) -> str | None:
    """Name what cannot be shared: there are no centroids."""
    share = config.centroids.share
    if share in ("head", "centroids"):
        return (
            f"centroids.share is '{share}', but a network of task '{config.task}' has no centroids; use 'both', or "
            "'none' for local-only training."
        )
    return None


def _nothing_learnt(config: RunConfig) -> str | None:
    """Name what leaves the sites' rounds without a loss: hours would go by and change nothing."""
    teacher, measuring = config.teacher, int(config.network.site_statistics > 0)
    if not config.facts.self_trains or config.rounds <= measuring:
        return None
    if teacher.distill_weight or teacher.entropy_weight or teacher.max_square_weight:
        return None
    if not teacher.weight:
        return (
            "teacher.weight is 0, and so are distill-weight, entropy-weight and max-square-weight, so that the sites "
            "would learn nothing; give one of them a weight."
        )
    if teacher.confidence == 1 and teacher.fraction == 0:
        return (
            "teacher.confidence is 1 and teacher.fraction is 0, so that no pixel is believed and the sites would learn "
            "nothing; lower the one or raise the other."
        )
    return None


def _measure(style: Style) -> dict[str, str]:
    """Return by what clusters were told apart: by another measure, images would go to the wrong one."""
    kind = style_kind(style)
    window = "" if kind.transfer == "lab" else str(2 * kind.half_side + 1)
    return {
        "style.transfer": kind.transfer,
        "style.height": str(kind.height),
        "style.width": str(kind.width),
        "style.side": window,
    }


def _cluster_conflict(config: RunConfig) -> str | None:
    """Name a setting that clusters, or local-only training, have no use for."""
    layers, rule, optimizer = config.clusters.layers, config.aggregation.rule, config.aggregation.optimizer
    local, labelling = config.centroids.share == "none", config.teacher.update
    if config.facts.self_trains and local and labelling in ("rounds", "mean"):
        return (
            f"teacher.update is '{labelling}', a copy of the shared model, but centroids.share is 'none'; use 'never' "
            "or 'student'."
        )
    looks = config.teacher.view == "plain" or config.teacher.mirror
    if config.facts.self_trains and labelling == "student" and looks and not config.teacher.distill_weight:
        return (
            "teacher.update is 'student', which labels what it is shown itself, but teacher.view or teacher.mirror "
            "says how a teacher looks; leave them at 'same' and false, or choose a teacher."
        )
    if layers == "none":
        return None
    if local:
        return (
            f"clusters.layers is '{layers}' but centroids.share is 'none', where sites share nothing with their "
            "cluster either; set one of the two to its default."
        )
    if layers == "bn" and config.network.batchnorm == "local":
        return (
            "clusters.layers is 'bn' but network.batchnorm is 'local', so that each site keeps what its cluster would "
            "share; change one of the two."
        )
    if optimizer != "none":
        return (
            f"aggregation.optimizer is '{optimizer}' but clusters.layers is '{layers}'; a server optimiser has no "
            "moments for clusters, set it to 'none'."
        )
    if rule != "mean":
        return (
            f"aggregation.rule is '{rule}' but clusters.layers is '{layers}'; what a cluster has for itself is "
            "averaged over its few sites, so use 'mean'."
        )
    return None


def check_clusters(config: RunConfig, sites: int) -> None:
    """Refuse clusters that so few sites cannot form."""
    wanted = config.clusters
    if wanted.layers == "none":
        return
    key, fewest = ("exact", wanted.exact) if wanted.exact else ("smallest", wanted.smallest)
    needed = (
        fewest if wanted.exact else fewest + 1
    )  # a silhouette compares, and needs a site more than clusters
    if sites < needed:
        raise UserError(
            f"clusters.{key} is {fewest} and needs {needed} sites, but there {'is' if sites == 1 else 'are'} {sites}; "
            "lower it, or set clusters.layers to 'none'."
        )
