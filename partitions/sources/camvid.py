"""CamVid and CrackForest, which come in one layout: folders {train,val,dev}/{images,labels} with splits/domains.csv."""

from __future__ import annotations

import csv
from pathlib import Path

from common.data.manifest import Entry
from common.errors import UserError
from partitions.sources.base import DATASETS, Dataset, LoadJob, SourceFacts


def _frames(root: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the (name, domain) rows of ``splits/domains.csv`` by split, in the file's order."""
    path = root / "splits" / "domains.csv"
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); expected the data set's own list of frames and "
            "domains there, so check --root."
        ) from None
    splits: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        if any(row.get(column) is None for column in ("split", "name", "domain")):
            raise UserError(f"{path} has a row without split, name and domain; restore the file.")
        splits.setdefault(row["split"], []).append((row["name"], row["domain"]))
    if not splits.get("train"):
        raise UserError(f"{path} lists no frame of split 'train'; restore the file.")
    return splits


def _read_splits(job: LoadJob, evaluation: tuple[str, ...]) -> Dataset:
    splits = {
        split: [
            Entry(f"{split}/images/{frame}.jpg", f"{split}/labels/{frame}.png", domain)
            for frame, domain in listed
        ]
        for split, listed in _frames(job.root).items()
    }
    return Dataset(splits["train"], evaluation={name: splits[name] for name in evaluation if name in splits})


@DATASETS.register(
    "camvid",
    summary="CamVid, 11 classes, nine drives as domains; --classes camvid-road: road against all else",
    facts=SourceFacts(
        "ROOT/{train,val,dev}/images/NAME.jpg, .../labels/NAME.png, ROOT/splits/domains.csv. The train frames "
        "are divided; dev.jsonl and val.jsonl are written as labelled manifests.",
        "the camvid data set",
        place=2,
        classes="camvid",
    ),
)
def _read_camvid(job: LoadJob) -> Dataset:
    return _read_splits(job, ("dev", "val"))


@DATASETS.register(
    "crackforest",
    summary="CrackForest, road surface against cracks, four domains",
    facts=SourceFacts(
        "ROOT/{train,val}/images/NNN.jpg, .../labels/NNN.png, ROOT/splits/domains.csv. The train photos are "
        "divided; val.jsonl is written as a labelled manifest.",
        "the crackforest data set",
        place=3,
        classes="crackforest",
    ),
)
def _read_crackforest(job: LoadJob) -> Dataset:
    return _read_splits(job, ("val",))
