"""The four sets of `benchmarks/label_free.py`: their sites, what is scored, and the backbone that all rows share."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data.classes import ClassTable, load_table
from common.data.manifest import (
    Entry,
    Partition,
    Shard,
    read_shard,
    write_manifest,
    write_partition,
)
from common.order import natural_key


@dataclass(frozen=True)
class ImageSet:
    """One set: its sites are the domains of split ``train``, and ``test`` is what is scored, by domain.

    Of ``train`` and ``test`` every so many images count, which keeps the whole benchmark within its three hours.
    """

    name: str
    classes: ClassTable
    test: str = "test"
    train_every: int = 1
    test_every: int = 1
    each_picture: str = "several"


def _table(name: str, *names: str) -> ClassTable:
    return ClassTable(name=name, names=names)


SETS: Mapping[str, ImageSet] = {
    one.name: one
    for one in (
        ImageSet("camvid", load_table("camvid"), test="dev"),
        ImageSet("nuclei", _table("nuclei", "background", "nucleus"), test_every=3),
        ImageSet(
            "steel",
            _table("steel", "background", "inclusion", "patches", "scratches"),
            train_every=3,
            test_every=3,
            each_picture="one",
        ),
        ImageSet("retina", _table("retina", "background", "vessel")),
    )
}


def _domains(root: Path) -> list[tuple[str, str, str]]:
    """Return (split, stem, domain) of every image, in the order of the file that the set comes with."""
    with (root / "splits" / "domains.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows and "path" in rows[0]:
        return [(row["path"].split("/")[0], Path(row["path"]).stem, row["domain"]) for row in rows]
    return [(row["split"], Path(row["name"]).stem, row["domain"]) for row in rows]


def make_shards(data: Path, folder: Path, chosen: ImageSet) -> None:
    """Write manifests: a site a domain, and ``test.jsonl``; nothing is done where they are the same already."""
    root = (data / chosen.name).resolve()
    found: dict[str, list[Entry]] = {}
    scored: list[Entry] = []
    for split, stem, domain in _domains(root):
        entry = Entry(_file(root, split, stem), f"{split}/labels/{stem}.png", domain)
        if split == "train":
            found.setdefault(domain, []).append(entry)
        elif split == chosen.test:
            scored.append(entry)
    by_path = {name: sorted(entries, key=lambda e: natural_key(e.image)) for name, entries in found.items()}
    sites = {name: entries[:: chosen.train_every] for name, entries in by_path.items()}
    manifests = {f"site-{i}": entries for i, entries in enumerate(sites.values())}
    manifests["test"] = sorted(scored, key=lambda e: natural_key(e.image))[:: chosen.test_every]
    folder.mkdir(parents=True, exist_ok=True)
    for name, entries in manifests.items():
        path = folder / f"{name}.jsonl"
        text = "".join(entry.to_line() + "\n" for entry in entries)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_manifest(path, entries)
    counts = {name: len(entries) for name, entries in manifests.items()}
    score = {"test": counts.pop("test")}
    write_partition(
        folder, Partition("folder", "domain", 0, root, counts, classes=chosen.classes, evaluation=score)
    )


def _file(root: Path, split: str, stem: str) -> str:
    return next((root / split / "images").glob(f"{stem}.*")).relative_to(root).as_posix()


def test_shard(folder: Path) -> Shard:
    """Return what is scored."""
    return read_shard(folder / "test.jsonl")


def site_names(folder: Path) -> list[str]:
    """Return the domain of every site, in the order of their numbers."""
    names = []
    for number in range(len(json.loads((folder / "partition.json").read_text())["sites"])):
        first = (folder / f"site-{number}.jsonl").read_text(encoding="utf-8").splitlines()[0]
        names.append(str(json.loads(first)["domain"]))
    return names


def shared_keys(chosen: ImageSet, folder: Path, weights: str, seed: int) -> dict[str, Any]:
    """Return what the settings of all rows have in common: the features of `label-free`, and the shards."""
    return {
        "model.backbone": "vit_base_patch16_clip_quickgelu_224",
        "model.weights": weights,
        "model.normalize": "model",
        "model.depth": 11,
        "model.pixels": 170_000,
        "model.crop": "none",
        "model.resize": "bilinear",
        "model.clusters": chosen.classes.num_classes,
        "simulation.shards": str(folder),
        "seed": seed,
    }
