"""Cityscapes, its training cities as domains."""

from __future__ import annotations

from pathlib import Path

from click import Choice

from common.data.crops import VIEWS
from common.data.manifest import Entry
from common.system.cli import option
from partitions.sources.base import CITYSCAPES_IDS, DATASETS, Dataset, LoadJob, SourceFacts

_IMAGE = "_leftImg8bit.png"


def _split(root: Path, split: str) -> list[Entry]:
    entries = []
    for path in sorted((root / "leftImg8bit" / split).glob(f"*/*{_IMAGE}")):
        city, frame = path.parent.name, path.name.removesuffix(_IMAGE)
        label = f"gtFine/{split}/{city}/{frame}_gtFine_labelIds.png"
        entries.append(Entry(path.relative_to(root).as_posix(), label, city))
    return entries


_OPTIONS = (
    option(
        "--crops",
        "HOW",
        "none (default), or five: sites train on four corners and the center of each photo, half as high and wide, "
        "as the published method does.",
        type=Choice(("none", "five")),
        default="none",
    ),
)


@DATASETS.register(
    "cityscapes",
    summary="Cityscapes, 27 classes (--classes cityscapes-19: 19); cities are domains, by default 18 sites",
    facts=SourceFacts(
        "ROOT/leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png, ROOT/gtFine/{train,val}/CITY/"
        "NAME_gtFine_labelIds.png. The train cities are divided; val.jsonl is written as a labelled manifest.",
        "Cityscapes",
        place=4,
        options=_OPTIONS,
        classes="cityscapes-27",
        tables=CITYSCAPES_IDS,
    ),
)
def _read(job: LoadJob) -> Dataset:
    return Dataset(
        _split(job.root, "train"),
        evaluation={"val": _split(job.root, "val")},
        settings={"crops": job.args.crops},
        views=tuple(VIEWS) if job.args.crops == "five" else (),
    )
