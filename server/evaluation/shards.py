"""Labelled shards that a run is scored on, at the server or on the sites, and the classes of their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.data.classes import ClassTable, load_table
from common.data.manifest import Shard, read_partition, read_shard
from common.errors import UserError
from common.settings.schema import RunConfig


def known_classes(config: RunConfig) -> ClassTable | None:
    """Return the class table that the settings, or the shards folder, name.

    Raises `UserError` where there is none though the sites are to count confusions.
    """
    if config.eval.classes:
        return load_table(config.eval.classes)
    folder = Path(config.simulation.shards) if config.simulation.shards else None
    classes = None
    if folder is not None and (folder / "partition.json").is_file():
        classes = read_partition(folder).classes
    if config.eval.where == "sites" and classes is None:
        raise UserError("eval.where is 'sites' but no class table is known; name one by eval.classes.")
    return classes


def scored_shard(name: str, config: RunConfig) -> Shard:
    """Read a manifest of ``eval.shard``; its labels mean what its own class table says, where it has one.

    ``eval.classes`` serves those that have none: two data sets write the same classes by different raw values.
    Raises `UserError` where both are there and name other classes.
    """
    path = Path(name)
    if config.simulation.shards and not path.is_absolute() and not path.is_file():
        path = Path(config.simulation.shards) / path
    table = load_table(config.eval.classes) if config.eval.classes else None
    shard = read_shard(path, config.simulation.data_root or None)
    own = shard.classes
    if own is None or table is None:
        return replace(shard, classes=own or table)
    if own.names != table.names:
        raise UserError(
            f"{path} has the classes of table '{own.name}' but eval.classes is '{config.eval.classes}', whose names "
            "are others; leave eval.classes empty, or make the shards with that table."
        )
    return shard


def evaluation_shard(config: RunConfig) -> Shard | None:
    """Read the one manifest that the server scores clusters on; a relative path may start in the shards folder."""
    if config.eval.where != "server" or not config.eval.shard:
        return None
    return scored_shard(config.eval.shard, config)


def evaluation_shards(config: RunConfig) -> list[Shard]:
    """Read the manifests that the server scores a network on; one without a class table has the run's.

    Raises `UserError` as `scored_shard` does, where one has no labels, and where two have one name.
    """
    if config.eval.where != "server" or not config.eval.shard:
        return []
    shards = []
    for part in config.eval.shard.split(","):
        shard = scored_shard(part.strip(), config)
        if not shard.labelled:
            raise UserError(
                f"{shard.path} names images without labels; scores of task '{config.task}' need them all."
            )
        shards.append(shard)
    names = [shard.name for shard in shards]
    if len(set(names)) < len(names):
        raise UserError(f"eval.shard names two manifests called {max(names, key=names.count)}; rename one.")
    table = run_classes(config, shards)
    return [replace(shard, classes=shard.classes or table) for shard in shards]


def run_classes(config: RunConfig, shards: Sequence[Shard]) -> ClassTable | None:
    """Return the classes of a run: those of its settings or sites, else of the first scored shard that has any."""
    return known_classes(config) or next(
        (shard.classes for shard in shards if shard.classes is not None), None
    )


def site_shards(config: RunConfig, sites: Sequence[str]) -> list[Shard]:
    """Return the labelled shards of simulated sites that a run is scored on where ``eval.where`` is "sites"."""
    folder, root = Path(config.simulation.shards), config.simulation.data_root or None
    paths = {folder / config.eval.shard.format(site=site) for site in sites}
    return [read_shard(path, root) for path in sorted(paths)]
