"""The segmentation part of Pascal VOC 2012."""

from __future__ import annotations

from common.data.manifest import Entry
from partitions.sources.base import DATASETS, Dataset, LoadJob, SourceFacts, need_files
from partitions.sources.cocostuff import read_list


@DATASETS.register(
    "voc",
    summary="Pascal VOC 2012 segmentation, 21 classes with background; 10 skewed sites",
    facts=SourceFacts(
        "ROOT (VOCdevkit or VOCdevkit/VOC2012) holds JPEGImages, SegmentationClass, ImageSets/Segmentation/{train,val}"
        ".txt. The train images are divided; val.jsonl is written as a labelled manifest.",
        "Pascal VOC",
        place=7,
        rule="dirichlet over classes, 10 sites",
        classes="voc",
    ),
)
def _read(job: LoadJob) -> Dataset:
    root = job.root / "VOC2012" if (job.root / "VOC2012").is_dir() else job.root
    splits = {}
    for split in ("train", "val"):
        names = read_list(root / "ImageSets" / "Segmentation" / f"{split}.txt")
        splits[split] = [Entry(f"JPEGImages/{n}.jpg", f"SegmentationClass/{n}.png") for n in names]
        need_files(root, splits[split], split)
    return Dataset(splits["train"], root, evaluation={"val": splits["val"]}, rule="dirichlet", sites=10)
