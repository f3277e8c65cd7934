"""Writes synthetic street scenes to the disk.

They serve the demo and the tests: every site is a drive of its own (place, light, palette), and
``eval.jsonl`` is a drive in mixed conditions that no site holds. All figures made on them are
figures about drawings; they say that the system works, not how good it is on photographs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from common.data.classes import load_table
from common.data.manifest import Entry, Partition, write_manifest, write_partition
from common.seeds import numpy_generator
from partitions.drawing.conditions import Condition, site_condition, unseen_condition
from partitions.drawing.scenes import render

VERSION = 1  # counts up when the same seed draws other pictures


def make_scenes(
    data: Path,
    sites: int,
    images_per_site: int,
    eval_images: int,
    size: tuple[int, int],
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[list[Entry]], list[Entry]]:
    """Draw the pictures and label maps below ``data``: entries of every site, entries of the unseen drive.

    ``size`` is (height, width). A scene depends on seed, site and its number alone, so that asking
    for more images or sites leaves those of a smaller set as they were. The unseen drive mixes the
    conditions of the sites asked for.
    """
    conditions = [site_condition(site, numpy_generator(seed, "site", site)) for site in range(sites)]
    total = sites * images_per_site + eval_images
    done = 0

    def draw(condition: Condition, folder: str, number: int, rng: np.random.Generator, domain: str) -> Entry:
        nonlocal done
        entry = Entry(f"images/{folder}/{number:04d}.jpg", f"labels/{folder}/{number:04d}.png", domain)
        picture, label = render(condition, size, rng)
        for path in (data / entry.image, data / str(entry.label)):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(data / entry.image, quality=92, subsampling=0)
        Image.fromarray(label).save(data / str(entry.label), compress_level=1)
        done += 1
        if progress is not None:
            progress(done, total)
        return entry

    shards = []
    for site, condition in enumerate(conditions):
        domain = condition.name if site < 20 else f"{condition.name}-{site // 20 + 1}"
        folder = f"{site:02d}-{condition.name}"
        shards.append(
            [
                draw(condition, folder, i, numpy_generator(seed, "scene", site, i), domain)
                for i in range(images_per_site)
            ]
        )
    unseen = []
    for i in range(eval_images):
        rng = numpy_generator(seed, "unseen", i)
        condition = unseen_condition(conditions, rng)
        unseen.append(draw(condition, "unseen", i, rng, condition.name))
    return shards, unseen


def write_synthetic(
    root: str | Path,
    sites: int = 4,
    images_per_site: int = 12,
    eval_images: int = 8,
    size: tuple[int, int] = (96, 128),
    seed: int = 0,
) -> Path:
    """Make a complete folder of shards with its pictures, one site per domain, and return it.

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
