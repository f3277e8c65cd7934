"""The part of a shard whose files can be used, and a sentence about each of the others."""

from __future__ import annotations

from dataclasses import replace

from common.data.check import inspect_shard
from common.data.manifest import Shard
from common.errors import UserError
from common.system.cli import Progress


def readable_part(shard: Shard, progress: Progress | None = None) -> tuple[Shard, list[str]]:
    """Decode every image, and the label of each that has one and a class table; return what can be used.

    Raises `UserError` where nothing is left.
    """
    faults: dict[int, str] = {}
    labelled = [
        i for i, entry in enumerate(shard.entries) if entry.label is not None and shard.classes is not None
    ]
    for labels, indices in ((True, labelled), (False, sorted({*range(len(shard))} - {*labelled}))):
        for index, result in zip(indices, inspect_shard(shard, labels, indices, progress), strict=True):
            if isinstance(result, UserError):
                faults[index] = str(result)
    if len(faults) == len(shard):
        raise UserError(f"No image of {shard.path} can be used; the first: {faults[0]}")
    kept = tuple(entry for index, entry in enumerate(shard.entries) if index not in faults)
    return replace(shard, entries=kept), [faults[index] for index in sorted(faults)]
