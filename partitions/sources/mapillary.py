"""How is Mapillary Vistas read, with the label maps of version 1.2?"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from common.data.classes import load_table
from common.data.manifest import Entry
from common.errors import UserError
from common.system.progress import Progress
from partitions.sources.base import (
    Dataset,
    Source,
    need_files,
    need_folder,
    pictures_below,
)


def _split(root: Path, split: str) -> list[Entry]:
    folder = need_folder(root / split / "images", "The Mapillary folder", "unpack Vistas into --root.")
    entries = [
        Entry(path.relative_to(root).as_posix(), f"{split}/v1.2/labels/{path.stem}.png")
        for path in pictures_below(folder)
    ]
    if not entries:
        raise UserError(f"{folder} holds no picture; unpack Vistas into --root.")
    need_files(root, entries, split)
    return entries


def _load(args: SimpleNamespace, stage: Path, progress: Progress | None) -> Dataset:
    root = need_folder(Path(args.root), "--root", "expected Mapillary Vistas.").resolve()
    return Dataset(
        name="mapillary",
        root=root,
        images=_split(root, "training"),
        classes=load_table(args.classes or "mapillary-19"),
        evaluation={"val": _split(root, "validation")},
    )


MAPILLARY = Source(
    "mapillary",
    "Mapillary Vistas 1.2, 19 classes; images name no place, so give --sites N or a --domain-* option",
    "ROOT/{training,validation}/images/NAME.jpg, ROOT/{training,validation}/v1.2/labels/NAME.png with ids 0 to 65. "
    "The training images are divided; val.jsonl is written as a labelled manifest. Published client lists are read "
    "by `python -m partitions leaf`.",
    (),
    _load,
    classes="mapillary-19",
    tables=("mapillary-19",),
)
