"""Can a run that trains a whole network work at all, asked before anything starts?"""

from __future__ import annotations

from common.checkpoint import load_checkpoint
from common.command import progress_line
from common.config import RunConfig
from common.data.check import check_shard
from common.data.classes import ClassTable
from common.data.manifest import Shard
from common.errors import UserError
from common.losses.reductions import crucial_classes
from common.models.deeplab import build_network, network_signature
from server.network_scoring import evaluation_shards
from server.pretrain import load_pretrained, source_shard
from server.run_dir import prepare_run_dir
from server.scoring import known_classes


def check_network_run(config: RunConfig, shards: list[Shard]) -> None:
    """Raise `UserError` for the first thing that would stop the run; make the run directory last.

    ``shards`` are what the sites will train on. Their labels are looked at for supervised training only.
    """
    table = need_classes(config)
    crucial_classes(config.reduction, table)
    check_clusters(config, len(shards))
    build_network(table.num_classes, config.network, config.seed)  # weights that are missing show here
    for shard in shards:
        if config.task == "supervised":
            check_training_labels(shard, table)
        check_pictures(shard, labels=config.task == "supervised")
    if config.task == "adaptation":
        check_source(config, table)
    for shard in evaluation_shards(config):
        if shard.classes is not None and shard.classes.num_classes != table.num_classes:
            raise UserError(
                f"{shard.path} has {shard.classes.num_classes} classes ({shard.classes.name}), the run has "
                f"{table.num_classes} ({table.name}); use one class table."
            )
        check_pictures(shard, labels=True)
    checkpoint = load_checkpoint(config.resume) if config.resume else None
    if checkpoint is not None and checkpoint.weights_hash != network_signature(
        table.num_classes, config.network
    ):
        raise UserError(
            f"The checkpoint {config.resume} holds another network than the settings ask for; use the recipe that "
            "it was made with."
        )
    from server.rounds import checkpoint_file

    prepare_run_dir(config, None if checkpoint is None else checkpoint_file(config.resume, checkpoint))


def need_classes(config: RunConfig) -> ClassTable:
    """Return the class table of a run; raises `UserError` where none is known."""
    table = known_classes(config)
    if table is None:
        raise UserError(
            f"Task '{config.task}' needs a class table and none is known; name one by eval.classes, for example "
            "camvid."
        )
    return table


def check_clusters(config: RunConfig, sites: int) -> None:
    """Refuse clusters that so few sites cannot form."""
    wanted = config.clusters
    if wanted.layers == "none":
        return
    fewest = wanted.exact or wanted.smallest
    if sites < fewest + (not wanted.exact):
        raise UserError(
            f"clusters.{'exact' if wanted.exact else 'smallest'} is {fewest} but there are {sites} sites; lower it, "
            "or set clusters.layers to 'none'."
        )
    if config.aggregation.optimizer != "none":
        raise UserError(
            f"aggregation.optimizer is '{config.aggregation.optimizer}' but clusters.layers is "
            f"'{wanted.layers}'; a server optimiser has no moments for clusters, set it to 'none'."
        )


def check_training_labels(shard: Shard, table: ClassTable) -> None:
    """Refuse a shard that supervised training cannot use."""
    if not shard.labelled:
        raise UserError(
            f"{shard.path} names images without labels; task 'supervised' needs a label for every image."
        )
    if shard.classes is not None and shard.classes.num_classes != table.num_classes:
        raise UserError(
            f"{shard.path} has {shard.classes.num_classes} classes, the run has {table.num_classes} ({table.name}); "
            "use one class table."
        )


def check_pictures(shard: Shard, *, labels: bool) -> None:
    """Refuse a shard with images (or labels) that cannot be read."""
    faults = check_shard(shard, labels=labels, progress=progress_line(f"checking images of {shard.name}"))
    if faults:
        more = f" ({len(faults) - 1} more images of {shard.name} have faults)" if len(faults) > 1 else ""
        raise UserError(faults[0] + more)


def check_source(config: RunConfig, table: ClassTable) -> None:
    """Refuse a source that adaptation cannot start from."""
    if config.source.checkpoint:
        load_pretrained(config, table)
        return
    shard = source_shard(config)
    check_training_labels(shard, table)
    check_pictures(shard, labels=True)
