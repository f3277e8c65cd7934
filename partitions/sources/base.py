"""What does a data set on disk look like to the partition rules?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from click import Option

from common.data.classes import TABLES, ClassTable
from common.data.images import SUFFIXES
from common.data.manifest import Entry, natural_key
from common.errors import UserError
from common.system.progress import Progress

TRAIN_EVAL = "train_eval"
"""The labelled manifest of all images that sites train on: how well is known what was seen?"""
SOURCE = "source"
"""The labelled manifest that adaptation starts from, at the server."""
SAME, DIFFERENT = "ts1", "ts2"
"""Evaluation manifests: other images of the sites' domains; images of domains that no site holds."""
CITYSCAPES_IDS = ("cityscapes-27", "cityscapes-19", "crosscity-13", "gta5-19", "gta5-16", "gta5-13")
"""Class tables of the label ids of Cityscapes, which other data sets took over."""


@dataclass(frozen=True)
class Dataset:
    """Images to be divided, and labelled manifests that go along undivided.

    ``root`` is where the files lie now; ``final_root`` where they will lie once the output folder
    stands, if that is elsewhere. ``rule`` and ``sites`` hold where the user says nothing. ``views``
    stand for every image in the site manifests, in place of the whole; evaluation is on whole images.
    ``clients`` says for an image (its path) which site the data set's own lists give it to: rule
    ``lists``. Without ``open_labels`` labels never stand in site manifests. A setting
    `REPAIR_SIZES` lets images take the size of their label maps.
    """

    name: str
    root: Path
    images: list[Entry]
    classes: ClassTable | None = None
    evaluation: dict[str, list[Entry]] = field(default_factory=dict)
    final_root: Path | None = None
    rule: str = "domain"
    sites: int | None = None
    settings: dict[str, str | int | float] = field(default_factory=dict)
    views: tuple[str, ...] = ()
    clients: Mapping[str, str] = field(default_factory=dict)
    open_labels: bool = True


@dataclass(frozen=True)
class Source:
    """One DATASET of the command: its help, its own options, and how it is read.

    ``load(args, stage, progress)`` may write below ``stage``, which becomes the output folder. ``tables`` are the
    class tables of this data set's raw values; of others that come with the project, many values would be known
    and mean something else. Empty: any may fit.
    """

    name: str
    help: str
    layout: str
    options: tuple[Option, ...]
    load: Callable[[SimpleNamespace, Path, Progress | None], Dataset]
    needs_root: bool = True
    rule: str = "domain"
    classes: str | None = None
    tables: tuple[str, ...] = ()

    def check_table(self, name: str | None) -> None:
        """Refuse a class table of the project's own that was made for other raw values; a file may say anything."""
        if self.tables and name in TABLES and name not in self.tables:
            raise UserError(
                f"--classes {name} was made for the raw values of another data set than {self.name}; choose "
                f"{' or '.join(self.tables)}, or a JSON file."
            )


def need_folder(path: Path, what: str, hint: str) -> Path:
    """Return ``path`` if it is a folder; else raise `UserError`."""
    if not path.is_dir():
        raise UserError(f"{what} {path} is no folder; {hint}")
    return path


def pictures_below(folder: Path, skip: Iterable[Path] = ()) -> list[Path]:
    """Return all picture files below ``folder`` in natural order.

    Hidden files and folders, folders in ``skip`` and earlier output folders (those with a
    ``partition.json``) are passed over.
    """
    passed = {path.resolve() for path in skip}
    found: list[Path] = []
    for name_of_base, folders, files in os.walk(folder):
        base = Path(name_of_base)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and (base / name).resolve() not in passed
            and not (base / name / "partition.json").is_file()
        ]
        found += [base / f for f in files if not f.startswith(".") and Path(f).suffix.lower() in SUFFIXES]
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def need_files(root: Path, entries: Iterable[Entry], split: str) -> None:
    """Raise `UserError` for the first entry whose image or label file is missing."""
    for entry in entries:
        if not (root / entry.image).is_file():
            raise UserError(
                f"The image {root / entry.image} of split {split!r} is missing; complete the data set or "
                "point --root elsewhere."
            )
        if entry.label is not None and not (root / entry.label).is_file():
            raise UserError(
                f"The image {root / entry.image} has no label map {root / entry.label}; add the file or "
                "leave the image out."
            )
