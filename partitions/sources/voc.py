"""The segmentation part of Pascal VOC 2012."""

from __future__ import annotations

from common.data.manifest import Entry
from partitions.leaf import read_names
from partitions.sources.base import DATASETS, Dataset, LoadJob, SourceFacts


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
    train, val = (
        [Entry(f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png") for name in names]
        for names in (
            read_names(root / f"ImageSets/Segmentation/{split}.txt", bare=True) for split in ("train", "val")
        )
    )
    return Dataset(train, root, evaluation={"val": val}, rule="dirichlet", sites=10)
