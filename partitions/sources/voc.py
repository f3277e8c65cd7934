"""How is the segmentation part of Pascal VOC 2012 read?"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from common.data.classes import load_table
from common.data.manifest import Entry
from common.system.progress import Progress
from partitions.sources.base import Dataset, Source, need_files, need_folder
from partitions.sources.cocostuff import read_list


def _load(args: SimpleNamespace, stage: Path, progress: Progress | None) -> Dataset:
    root = need_folder(Path(args.root), "--root", "expected Pascal VOC.").resolve()
    if (root / "VOC2012").is_dir():
        root = root / "VOC2012"
    splits = {}
    for split in ("train", "val"):
        names = read_list(root / "ImageSets" / "Segmentation" / f"{split}.txt")
        splits[split] = [Entry(f"JPEGImages/{n}.jpg", f"SegmentationClass/{n}.png") for n in names]
        need_files(root, splits[split], split)
    return Dataset(
        name="voc",
        root=root,
        images=splits["train"],
        classes=load_table(args.classes or "voc"),
        evaluation={"val": splits["val"]},
        rule="dirichlet",
        sites=10,
    )


VOC = Source(
    "voc",
    "Pascal VOC 2012 segmentation, 21 classes with background; 10 skewed sites",
    "ROOT (VOCdevkit or VOCdevkit/VOC2012) holds JPEGImages, SegmentationClass, ImageSets/Segmentation/{train,val}"
    ".txt. The train images are divided; val.jsonl is written as a labelled manifest.",
    (),
    _load,
    rule="dirichlet over classes, 10 sites",
    classes="voc",
)
