"""Mapillary Vistas, with the label maps of version 1.2."""

from __future__ import annotations

from pathlib import Path

from common.data.manifest import Entry
from partitions.sources.base import DATASETS, Dataset, LoadJob, SourceFacts, images_below


def _split(root: Path, split: str) -> list[Entry]:
    return [
        Entry(path.relative_to(root).as_posix(), f"{split}/v1.2/labels/{path.stem}.png")
        for path in images_below(root / split / "images")
    ]


@DATASETS.register(
    "mapillary",
    summary="Mapillary Vistas 1.2, 19 classes; images name no place, so give --sites N or a --domain-* option",
    facts=SourceFacts(
        "ROOT/{training,validation}/images/NAME.jpg, ROOT/{training,validation}/v1.2/labels/NAME.png with ids 0 to 65. "
        "The training images are divided; val.jsonl is written as a labelled manifest. Published client lists are read "
        "by `python -m partitions leaf`.",
        "Mapillary Vistas",
        place=11,
        classes="mapillary-19",
        tables=("mapillary-19",),
    ),
)
def _read(job: LoadJob) -> Dataset:
    return Dataset(_split(job.root, "training"), evaluation={"val": _split(job.root, "validation")})
