"""How are data sets read whose folders are {train,val,dev}/{images,labels} with splits/domains.csv?

CamVid and CrackForest come in this form.
"""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

from common.data.classes import load_table
from common.data.manifest import Entry
from common.errors import UserError
from common.system.progress import Progress
from partitions.sources.base import Dataset, Source, need_files, need_folder


def read_splits(root: Path) -> dict[str, list[tuple[str, str]]]:
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


def _source(name: str, help_text: str, evaluation: tuple[str, ...], layout: str) -> Source:
    def load(args: SimpleNamespace, stage: Path, progress: Progress | None) -> Dataset:
        root = need_folder(Path(args.root), "--root", f"expected the {name} data set.").resolve()
        listed = read_splits(root)
        splits = {
            split: [
                Entry(f"{split}/images/{frame}.jpg", f"{split}/labels/{frame}.png", domain)
                for frame, domain in listed.get(split, [])
            ]
            for split in ("train", *evaluation)
        }
        for split, entries in splits.items():
            need_files(root, entries, split)
        return Dataset(
            name=name,
            root=root,
            images=splits.pop("train"),
            classes=load_table(args.classes or name),
            evaluation={split: entries for split, entries in splits.items() if entries},
        )

    return Source(name, help_text, layout, (), load, classes=name)


CAMVID = _source(
    "camvid",
    "CamVid, 11 classes, nine drives as domains; --classes camvid-road: road against all else",
    ("dev", "val"),
    "ROOT/{train,val,dev}/images/NAME.jpg, .../labels/NAME.png, ROOT/splits/domains.csv. The train frames "
    "are divided; dev.jsonl and val.jsonl are written as labelled manifests.",
)
CRACKFOREST = _source(
    "crackforest",
    "CrackForest, road surface against cracks, four domains",
    ("val",),
    "ROOT/{train,val}/images/NNN.jpg, .../labels/NNN.png, ROOT/splits/domains.csv. The train photos are "
    "divided; val.jsonl is written as a labelled manifest.",
)
