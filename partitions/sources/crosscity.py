"""How is CrossCity read, four cities without labels for training and with labels for scoring?"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from common.data.classes import load_table
from common.data.manifest import Entry
from common.errors import UserError
from common.system.progress import Progress
from partitions.sources.base import (
    CITYSCAPES_IDS,
    Dataset,
    Source,
    need_files,
    need_folder,
    pictures_below,
)

_LABEL = "_eval.png"


def _load(args: SimpleNamespace, stage: Path, progress: Progress | None) -> Dataset:
    root = need_folder(Path(args.root), "--root", "expected CrossCity.").resolve()
    if (root / "cities").is_dir():
        root = root / "cities"
    images: list[Entry] = []
    test: list[Entry] = []
    for city in sorted(path.name for path in root.iterdir() if (path / "Images" / "Train").is_dir()):
        for path in pictures_below(root / city / "Images" / "Train"):
            images.append(Entry(path.relative_to(root).as_posix(), None, city))
        for path in pictures_below(root / city / "Images" / "Test"):
            label = f"{city}/Labels/Test/{path.stem}{_LABEL}"
            test.append(Entry(path.relative_to(root).as_posix(), label, city))
    if not images:
        raise UserError(f"{root} holds no CITY/Images/Train/NAME.jpg; expected CrossCity, so check --root.")
    need_files(root, test, "test")
    return Dataset(
        name="crosscity",
        root=root,
        images=images,
        classes=load_table(args.classes or "crosscity-13"),
        evaluation={"test": test} if test else {},
    )


CROSSCITY = Source(
    "crosscity",
    "CrossCity, 13 classes: four cities without labels as domains, --sites N divides them; labelled test",
    "ROOT (or ROOT/cities) holds CITY/Images/{Train,Test}/NAME.{jpg,png} and CITY/Labels/Test/NAME_eval.png. Site "
    "manifests name no labels, for there are none; test.jsonl does.",
    (),
    _load,
    classes="crosscity-13",
    tables=CITYSCAPES_IDS,
)
