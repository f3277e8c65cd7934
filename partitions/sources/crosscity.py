"""CrossCity: four cities without labels for training, and labelled images for scoring."""

from __future__ import annotations

from common.data.manifest import Entry
from partitions.sources.base import CITYSCAPES_IDS, DATASETS, Dataset, LoadJob, SourceFacts, images_below


@DATASETS.register(
    "crosscity",
    summary="CrossCity, 13 classes: four cities without labels as domains, --sites N divides them; labelled test",
    facts=SourceFacts(
        "ROOT (or ROOT/cities) holds CITY/Images/{Train,Test}/NAME.{jpg,png} and CITY/Labels/Test/NAME_eval.png. Site "
        "manifests name no labels, for there are none; test.jsonl does.",
        "CrossCity",
        place=10,
        classes="crosscity-13",
        tables=CITYSCAPES_IDS,
    ),
)
def _read(job: LoadJob) -> Dataset:
    root = job.root / "cities" if (job.root / "cities").is_dir() else job.root
    images: list[Entry] = []
    test: list[Entry] = []
    for city in sorted(path.name for path in root.iterdir() if (path / "Images" / "Train").is_dir()):
        for path in images_below(root / city / "Images" / "Train"):
            images.append(Entry(path.relative_to(root).as_posix(), None, city))
        for path in images_below(root / city / "Images" / "Test"):
            label = f"{city}/Labels/Test/{path.stem}_eval.png"
            test.append(Entry(path.relative_to(root).as_posix(), label, city))
    return Dataset(images, root, evaluation={"test": test} if test else {})
