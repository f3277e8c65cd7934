"""How is Cityscapes read, its training cities as domains?"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.data.classes import load_table
from common.data.crops import VIEWS
from common.data.manifest import Entry
from common.errors import UserError
from partitions.sources.base import CITYSCAPES_IDS, Dataset, Progress, Source, need_files, need_folder

_IMAGE = "_leftImg8bit.png"


def _split(root: Path, split: str) -> list[Entry]:
    folder = need_folder(
        root / "leftImg8bit" / split,
        "The Cityscapes folder",
        "unpack leftImg8bit_trainvaltest.zip into --root.",
    )
    entries = []
    for path in sorted(folder.glob(f"*/*{_IMAGE}")):
        city, frame = path.parent.name, path.name.removesuffix(_IMAGE)
        label = f"gtFine/{split}/{city}/{frame}_gtFine_labelIds.png"
        entries.append(Entry(path.relative_to(root).as_posix(), label, city))
    if not entries:
        raise UserError(
            f"{folder} holds no CITY/NAME{_IMAGE}; unpack leftImg8bit_trainvaltest.zip into --root."
        )
    need_files(root, entries, split)
    return entries


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--crops",
        choices=("none", "five"),
        default="none",
        help="five: sites train on four corners and the centre of each photo, half as high and wide, as the "
        "published method does; they are cut when read, no file is written (default: whole photos)",
    )


def _load(args: argparse.Namespace, stage: Path, progress: Progress | None) -> Dataset:
    root = need_folder(Path(args.root), "--root", "expected Cityscapes.").resolve()
    return Dataset(
        name="cityscapes",
        root=root,
        images=_split(root, "train"),
        classes=load_table(args.classes or "cityscapes-27"),
        evaluation={"val": _split(root, "val")},
        settings={"crops": args.crops},
        views=tuple(VIEWS) if args.crops == "five" else (),
    )


CITYSCAPES = Source(
    "cityscapes",
    "Cityscapes, 27 classes (--classes cityscapes-19: 19); cities are domains: 18 sites, blocks of cities with "
    "fewer, pieces of cities with more",
    "ROOT/leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png, ROOT/gtFine/{train,val}/CITY/"
    "NAME_gtFine_labelIds.png. The train cities are divided; val.jsonl is written as a labelled manifest.",
    _add_options,
    _load,
    classes="cityscapes-27",
    tables=CITYSCAPES_IDS,
)
