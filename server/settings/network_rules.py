"""Conflicts of settings of the tasks that train a whole network.

A setting of another task is refused (`server.settings.applicability`), for someone set it for a reason, and so is
one that contradicts another. One that merely lacks another, as ``reduction.power`` without its kind, is not: it is
switched by ``--set`` on top of a recipe.
"""

from __future__ import annotations

from common.errors import UserError
from common.models.network import NETWORKS
from common.settings.network import Style
from common.settings.schema import RunConfig
from common.styles.style import style_kind
from server.settings.applicability import refuse_foreign
from server.settings.rules import ConflictTable, broken


def _learns_from_teacher_alone(config: RunConfig) -> bool:
    """Whether sites have no loss beside that of pseudo-labels: without those, hours go by and change nothing."""
    teacher, measuring = config.teacher, int(config.network.site_statistics > 0)
    beside = teacher.distill_weight or teacher.entropy_weight or teacher.max_square_weight
    learns = config.facts.self_trains and not config.facts.from_clusters
    return learns and config.rounds > measuring and not beside


def _alone(config: RunConfig) -> bool:
    return config.centroids.share == "none"


_FIXED = "but network.architecture [network.architecture] has a stride and a head of its own"

NETWORK_RULES: ConflictTable = {
    lambda c: not NETWORKS.facts(c.network.architecture).atrous: (
        ("network.output-stride", (32,), _FIXED),
        ("network.rates", ("12,24,36",), _FIXED),
        ("network.dropout", (0.5,), _FIXED),
    ),
    lambda c: True: (("centroids.share", ("both", "none"), "but a network of task [task] has no centroids"),),
    lambda c: c.facts.from_clusters: (
        ("centroids.share", ("both",), "but all sites make masks by one model"),
        ("teacher.distill-weight", (0,), "but no network was pretrained elsewhere; leave it out"),
        ("teacher.entropy-weight", (0,), "but masks say what pixels are"),
        ("teacher.max-square-weight", (0,), "but masks say what pixels are"),
    ),
    lambda c: _learns_from_teacher_alone(c) and not c.teacher.weight: (
        (
            "teacher.weight",
            (),
            "like distill-weight, entropy-weight and max-square-weight: sites would learn nothing; raise one of them",
        ),
    ),
    lambda c: _learns_from_teacher_alone(c) and c.teacher.confidence == 1 and c.teacher.fraction == 0: (
        (
            "teacher.confidence",
            (),
            "and teacher.fraction is 0, so that no pixel is believed: sites would learn nothing; change one of them",
        ),
    ),
    lambda c: c.facts.self_trains and _alone(c): (
        (
            "teacher.update",
            ("never", "student"),
            "a copy of the shared model, but centroids.share is 'none'",
        ),
    ),
    lambda c: (
        c.facts.self_trains
        and (c.teacher.view == "plain" or c.teacher.mirror)
        and c.teacher.update == "student"
        and not c.teacher.distill_weight
    ): (
        (
            "teacher.update",
            (),
            "but teacher.view or teacher.mirror says how another one looks; leave them at 'same' and false",
        ),
    ),
    _alone: (
        ("clusters.layers", ("none",), "but centroids.share is 'none', so that no cluster shares anything"),
        ("network.final-statistics", (False,), "but centroids.share is 'none', so that nothing is pooled"),
        ("wire.differences", ("none",), "but centroids.share is 'none', so that no network travels"),
    ),
    lambda c: c.network.batchnorm == "local" and c.clusters.layers == "bn": (
        (
            "clusters.layers",
            (),
            "but network.batchnorm is 'local': each site keeps what its cluster would share; change one of the two",
        ),
    ),
    lambda c: c.clusters.layers != "none": (
        (
            "aggregation.optimizer",
            ("none",),
            "but clusters.layers is [clusters.layers]; a server optimizer has no moments for clusters",
        ),
        (
            "aggregation.rule",
            ("mean",),
            "but clusters.layers is [clusters.layers]; what a cluster has for itself is averaged over its few sites",
        ),
    ),
}


def refuse_conflicts(config: RunConfig) -> None:
    """Raise `UserError` for the first setting that task `supervised` or `adaptation` cannot honour."""
    refuse_foreign(config)
    if conflict := broken(NETWORK_RULES, config):
        raise UserError(f"{conflict}.")


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
    network = NETWORKS.facts(config.network.architecture).identity
    words = [
        f"{network} at stride {config.network.output_stride} with {classes} classes",
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


def check_clusters(config: RunConfig, sites: int) -> None:
    """Refuse clusters that so few sites cannot form."""
    wanted = config.clusters
    if wanted.layers == "none":
        return
    key, fewest = ("exact", wanted.exact) if wanted.exact else ("smallest", wanted.smallest)
    # a silhouette compares, and needs a site more than clusters
    needed = fewest if wanted.exact else fewest + 1
    if sites < needed:
        raise UserError(
            f"clusters.{key} is {fewest} and needs {needed} sites, but there {'is' if sites == 1 else 'are'} {sites}; "
            "lower it, or set clusters.layers to 'none'."
        )
