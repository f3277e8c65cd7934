"""Shards of synthetic scenes, as ``python -m partitions synthetic`` writes them but for the picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from common.data.checksums import CHECKSUMS
from common.data.classes import load_table
from common.data.manifest import Partition, write_manifest, write_partition
from partitions.drawing.scenes import make_scenes


def write_synthetic(
    root: str | Path,
    sites: int = 4,
    images_per_site: int = 12,
    eval_images: int = 8,
    size: tuple[int, int] = (96, 128),
    seed: int = 0,
) -> Path:
    """Make a complete folder of shards with its images, one site per domain, and return it.

    ``root/site-0.jsonl`` ..., ``root/eval.jsonl`` (labelled, conditions that no site holds),
    ``root/partition.json`` (class table ``synthetic``), pictures and label maps below
    ``root/data``. ``size`` is (height, width). No picture of the split: for that there is
    ``python -m partitions synthetic``, which writes the same shards.
    """
    folder = Path(root)
    data = folder / "data"
    shards, unseen = make_scenes(data, sites, images_per_site, eval_images, size, seed)
    names = [f"site-{i}" for i in range(sites)]
    for name, entries in zip(names, shards, strict=True):
        write_manifest(folder / f"{name}.jsonl", entries)
    if unseen:
        write_manifest(folder / "eval.jsonl", unseen)
    partition = Partition(
        dataset="synthetic",
        rule="domain",
        seed=seed,
        root=data.resolve(),
        sites={name: len(entries) for name, entries in zip(names, shards, strict=True)},
        classes=load_table("synthetic"),
        domains={n: {str(e[0].domain): len(e)} for n, e in zip(names, shards, strict=True) if e},
        evaluation={"eval": len(unseen)} if unseen else {},
    )
    write_partition(folder, partition)
    return folder


def copy_to_change(scenes: Path, copy: Path, **changes: Any) -> Path:
    """Copy shards without cache and checksums, as one who edits them by hand would, and return the copy.

    ``changes`` are to ``partition.json``; the manifests of the copy may be changed as well.
    """
    shutil.copytree(scenes, copy, ignore=shutil.ignore_patterns("cache"))
    described = json.loads((copy / "partition.json").read_text())
    described.pop(CHECKSUMS)
    (copy / "partition.json").write_text(json.dumps(described | changes))
    return copy
