"""Driving data sets: Cityscapes, CrossCity, GTA5 and Mapillary Vistas."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from click import Choice

from common.data.manifest import REPAIR_SIZES, VIEWS, Entry
from common.errors import UserError
from common.system.cli import option
from partitions.leaf import read_names
from partitions.sources.base import (
    ANYWHERE,
    CITYSCAPES_IDS,
    DATASETS,
    Dataset,
    LoadJob,
    SourceFacts,
    images_below,
)

_IMAGE = "_leftImg8bit.png"  # of the left camera, with 8 bits


def _cityscapes_split(root: Path, split: str) -> list[Entry]:
    entries = []
    # in alphabetic order, so that blocks of cities are the same on every machine
    for path in sorted((root / "leftImg8bit" / split).glob(f"*/*{_IMAGE}")):
        city, frame = path.parent.name, path.name.removesuffix(_IMAGE)
        label = f"gtFine/{split}/{city}/{frame}_gtFine_labelIds.png"
        entries.append(Entry(path.relative_to(root).as_posix(), label, city))
    return entries


_CROPS = (
    option(
        "--crops",
        "HOW",
        "none (default), or five: sites train on four corners and the center of each photo, half as high and wide, "
        "as the published method does; random: on five crops of that size anywhere, drawn by --seed.",
        type=Choice(("none", "five", "random")),
        default="none",
    ),
)


@DATASETS.register(
    "cityscapes",
    summary="Cityscapes, 27 classes (--classes cityscapes-19: 19); cities are domains, by default 18 sites",
    facts=SourceFacts(
        "ROOT/leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png, ROOT/gtFine/{train,val}/CITY/"
        "NAME_gtFine_labelIds.png. The train cities are divided; val.jsonl is written as a labelled manifest.",
        "Cityscapes",
        place=4,
        options=_CROPS,
        classes="cityscapes-27",
        tables=CITYSCAPES_IDS,
    ),
)
def _read_cityscapes(job: LoadJob) -> Dataset:
    return Dataset(
        _cityscapes_split(job.root, "train"),
        evaluation={"val": _cityscapes_split(job.root, "val")},
        settings={"crops": job.args.crops},
        views={"none": (), "five": tuple(VIEWS), "random": (ANYWHERE,) * len(VIEWS)}[job.args.crops],
    )


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
def _read_crosscity(job: LoadJob) -> Dataset:
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


def _gta5_entry(line: str, where: Path) -> Entry:
    """Read ``00001.png`` or ``/images/00001.png /labels/00001.png``."""
    parts = line.split()
    if len(parts) == 1:
        name = PurePosixPath(parts[0]).name
        return Entry(f"images/{name}", f"labels/{PurePosixPath(name).stem}.png")
    if len(parts) == 2 and not any(".." in PurePosixPath(part).parts for part in parts):
        return Entry(parts[0].lstrip("/"), parts[1].lstrip("/"))
    raise UserError(
        f"The list {where} holds {line!r}; expected a file name, or image and label path below --root."
    )


def _listed(root: Path, given: str | None, default: str) -> list[Entry] | None:
    path = root / default if given is None else Path(given)
    if given is None and not path.is_file():
        return None
    return [_gta5_entry(line, path) for line in read_names(path)]


_LISTS = (
    option(
        "--train-list",
        "FILE",
        "Images to divide (default: ROOT/train.txt, or all images).",
    ),
    option("--test-list", "FILE", "Images of test.jsonl (default: ROOT/test.txt, if there)."),
)


@DATASETS.register(
    "gta5",
    summary="GTA5, drawn street scenes as a source: --classes gta5-19, -16 (to go on with IDDA) or -13 (CrossCity)",
    facts=SourceFacts(
        "ROOT/images/NNNNN.png, ROOT/labels/NNNNN.png (palette indices), lists of names in ROOT/train.txt and "
        "test.txt. All training images are one manifest, site-0.jsonl, unless --sites says more; images whose size "
        "differs from their label map are resized to it when read.",
        "GTA5",
        place=8,
        options=_LISTS,
        rule="one site",
        classes="gta5-19",
        tables=CITYSCAPES_IDS,
    ),
)
def _read_gta5(job: LoadJob) -> Dataset:
    args, root = job.args, job.root
    test = _listed(root, args.test_list, "test.txt")
    images = _listed(root, args.train_list, "train.txt")
    if images is None:
        # what is scored is not trained on
        scored = {entry.image for entry in test or ()}
        names = [path.relative_to(root / "images") for path in images_below(root / "images")]
        found = [
            Entry(f"images/{name.as_posix()}", f"labels/{name.with_suffix('.png').as_posix()}")
            for name in names
        ]
        images = [entry for entry in found if entry.image not in scored]
    return Dataset(
        images,
        evaluation={"test": test} if test else {},
        rule="iid",
        sites=1,  # the source of an adaptation lies at the server alone
        settings={REPAIR_SIZES: True},
    )


def _mapillary_split(root: Path, split: str) -> list[Entry]:
    return [
        # the labels of version 2.0 have other ids
        Entry(path.relative_to(root).as_posix(), f"{split}/v1.2/labels/{path.stem}.png")
        for path in images_below(root / split / "images")
    ]


@DATASETS.register(
    "mapillary",
    summary="Mapillary Vistas 1.2, 19 classes; images name no place, so give --sites N or a --domain-* option",
    facts=SourceFacts(
        "ROOT/{training,validation}/images/NAME.jpg, ROOT/{training,validation}/v1.2/labels/NAME.png with ids 0 to 65. "
        "The training images are divided; val.jsonl is written as a labelled manifest. Published client lists are read "
        "by `python -m partitions leaf`.",
        "Mapillary Vistas",
        place=11,
        classes="mapillary-19",
        tables=("mapillary-19",),
    ),
)
def _read_mapillary(job: LoadJob) -> Dataset:
    return Dataset(
        _mapillary_split(job.root, "training"), evaluation={"val": _mapillary_split(job.root, "validation")}
    )
