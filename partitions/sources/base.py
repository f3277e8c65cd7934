"""Data sets as the command sees them: what a loader returns, and the registry that finds one file per data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from click import Option

from common.data.audit import find_images
from common.data.classes import ClassTable, known_table, load_table
from common.data.formats import split_frame
from common.data.manifest import Entry
from common.errors import UserError
from common.registry import Registered, Registry
from common.system.cli import Progress

# the labelled manifest of all images that sites train on: how well is known what was seen
TRAIN_EVAL = "train_eval"
# the labelled manifest that adaptation starts from, at the server
SOURCE = "source"
# evaluation manifests: other images of the sites' domains; images of domains that no site holds
SAME, DIFFERENT = "ts1", "ts2"
# a view that `partitions.rules.drawn_view` puts somewhere, another place for each crop of each image
ANYWHERE = "anywhere"
# class tables of the label ids of Cityscapes, which other data sets took over
CITYSCAPES_IDS = ("cityscapes-27", "cityscapes-19", "crosscity-13", "gta5-19", "gta5-16", "gta5-13")


@dataclass(frozen=True)
class Dataset:
    """Images to be divided, and labelled manifests that go along undivided.

    A loader fills in ``images`` and what differs from the defaults. Name, root and class table follow from its
    `SourceFacts`, and `load_dataset` looks whether all files are there.
    """

    images: list[Entry]
    root: Path = Path()  # where the files lie now
    name: str = ""
    classes: ClassTable | None = None
    evaluation: dict[str, list[Entry]] = field(default_factory=dict)
    final_root: Path | None = None  # where they lie once the output folder stands, if that is elsewhere
    rule: str = "domain"  # this and the next hold where the user says nothing
    sites: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # `REPAIR_SIZES`: images are resized
    views: tuple[str, ...] = ()  # crops that stand in site manifests in place of a whole image
    clients: Mapping[str, str] = field(default_factory=dict)  # by image path: its site in the set's own lists
    open_labels: bool = True  # False: labels never stand in site manifests
    notes: tuple[str, ...] = ()  # sentences for the user: what was found besides, and what was left out


@dataclass(frozen=True)
class LoadJob:
    """What a loader is given: the data set's folder and the options."""

    root: Path  # given by --root, resolved; an empty path where none is needed
    classes: ClassTable | None  # of the data set's raw values
    args: SimpleNamespace  # the options, those of the data set included
    stage: Path  # becomes the output folder; a loader may write below it
    progress: Progress | None  # called with (images done, images in all)


Read = Callable[[LoadJob], Dataset]


@dataclass(frozen=True)
class SourceFacts:
    """What the command asks of a data set besides its loader."""

    layout: (
        str  # which files it expects where, for messages as well; in further sentences what it makes of them
    )
    title: str  # what --root should hold, for messages
    place: int = 100  # order in the help; data sets without one come last
    options: tuple[Option, ...] = ()
    needs_root: bool = True
    rule: str = "domain"  # how sites are made where the user says nothing, for the help
    classes: str | None = None  # the default class table
    # class tables that fit its raw values, empty: any; in others many values are known and mean something else
    tables: tuple[str, ...] = ()


DATASETS = Registry[Read, SourceFacts]("data set", "partitions.sources")


def datasets() -> list[Registered[Read, SourceFacts]]:
    """Return all data sets in the order of the help."""
    return sorted(DATASETS.entries(), key=lambda entry: (entry.facts.place, entry.name))


def load_dataset(name: str, args: SimpleNamespace, stage: Path, progress: Progress | None) -> Dataset:
    """Read a data set of `DATASETS` and check that its files are there; arguments as in `LoadJob`.

    Raises `UserError` for a class table, folders and files that do not fit it, and for a split without images.
    """
    source, table_name = DATASETS.facts(name), args.classes
    # a table of the project's own was made for certain raw values; a file of the user's may say anything
    if source.tables and table_name not in (None, *source.tables) and known_table(table_name) is not None:
        raise UserError(
            f"--classes {table_name} was made for the raw values of another data set than {name}; choose "
            f"{' or '.join(source.tables)}, or a JSON file."
        )
    root = Path()
    if source.needs_root:
        root = need_folder(Path(args.root), "--root", f"expected {source.title}.").resolve()
    chosen = args.classes or source.classes
    table = load_table(chosen) if chosen else None
    data = DATASETS.get(name)(LoadJob(root, table, args, stage, progress))
    data = replace(data, name=name, root=root if data.root == Path() else data.root)
    data = replace(data, classes=data.classes or table)
    if data.root.is_relative_to(stage):  # written by the loader: it moves with the output folder
        data = replace(data, final_root=Path(args.out).resolve() / data.root.relative_to(stage))
    for split, entries in {"train": data.images, **data.evaluation}.items():
        if not entries:
            raise UserError(
                f"{root} holds no images of split {split!r} (expected: {source.layout.partition('. ')[0]}); complete "
                "the data set or check --root."
            )
        need_files(data.root, entries, split)
    return data


def all_labelled(entries: Sequence[Entry]) -> bool:
    """Return whether there are images and each has a label map."""
    return bool(entries) and all(entry.label is not None for entry in entries)


def need_folder(path: Path, what: str, hint: str) -> Path:
    """Return ``path`` if it is a folder; else raise `UserError`."""
    if not path.is_dir():
        raise UserError(f"{what} {path} is no folder; {hint}")
    return path


def images_below(folder: Path) -> list[Path]:
    """Return all image files below ``folder`` in natural order, masks included (see `find_images`)."""
    return [folder / path for path in find_images(folder, keep_masks=True).images]


def need_files(root: Path, entries: Iterable[Entry], split: str) -> None:
    """Raise `UserError` for the first entry whose image or label file is missing."""
    for entry in entries:
        if not split_frame(root / entry.image)[0].is_file():
            raise UserError(
                f"The image {root / entry.image} of split {split!r} is missing; complete the data set or "
                "point --root elsewhere."
            )
        if entry.label is not None and not (root / entry.label).is_file():
            raise UserError(
                f"The image {root / entry.image} has no label map {root / entry.label}; add the file or "
                "leave the image out."
            )
