"""Can a network be trained or scored on a labelled shard, as far as its labels go?"""

from __future__ import annotations

from common.data.check import check_labels
from common.data.classes import ClassTable
from common.data.manifest import Shard
from common.errors import UserError
from common.system.cli import progress_line


def check_labelled(shard: Shard, table: ClassTable, why: str) -> None:
    """Refuse a shard with images that have no label, or whose classes are not those of the run."""
    missing = sum(entry.label is None for entry in shard.entries)
    if missing:
        raise UserError(
            f"{missing} of {len(shard)} images of {shard.path} have no label, but {why}; add the labels or leave the "
            "images out."
        )
    own = shard.classes
    if own is None or own.names == table.names:
        return
    if own.num_classes != table.num_classes:
        raise UserError(
            f"{shard.path} has {own.num_classes} classes ({own.name}), the run has {table.num_classes} "
            f"({table.name}); use one class table."
        )
    theirs, ours = next((a, b) for a, b in zip(own.names, table.names, strict=True) if a != b)
    raise UserError(
        f"{shard.path} calls a class '{theirs}' ({own.name}) that the run calls '{ours}' ({table.name}); use one "
        "class table."
    )


def check_truth(shard: Shard) -> None:
    """Read all labels, and of images the headers, with progress; `UserError` as `check_labels` raises it."""
    check_labels(shard, progress_line(f"checking labels of {shard.name}"), sizes=True)
