"""Images to segment: what files and folders that a user named hold, and the names of their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.data.audit import find_images
from common.data.formats import shown
from common.errors import UserError


@dataclass(frozen=True)
class ImageJob:
    """An image to segment, and the name of its results (relative, without a suffix)."""

    source: Path
    name: Path


@dataclass(frozen=True)
class Inputs:
    """Images in a fixed order, a sentence for each file that is not taken, and how many masks were passed over."""

    jobs: list[ImageJob]
    left_out: list[str]
    masks: int


def find_pictures(
    inputs: Sequence[str | Path], exclude: Path | None = None, *, keep_masks: bool = False
) -> Inputs:
    """List the images of files and folders in a fixed order; each gets a name of its own.

    Names keep the path below the given folder, and the ending where two images would have one name. What lies below
    ``exclude`` (earlier results) is left out, and so are masks, unless ``keep_masks``.
    Raises `UserError` where nothing is found, or two results would have one name.
    """
    jobs: list[ImageJob] = []
    left_out: list[str] = []
    masks = 0
    for given in map(Path, inputs):
        if given.is_file():
            jobs.append(ImageJob(given, Path(given.stem)))
        elif given.is_dir():
            found = find_images(given, () if exclude is None else (exclude,), keep_masks=keep_masks)
            masks += sum(len(kind.files) for kind in found.masks)
            left_out += found.left_out
            jobs += _named(given, found.images)
        else:
            raise UserError(f"{shown(given)} does not exist; give pictures or folders of pictures.")
    if not jobs:
        why = f"; {len(left_out)} are left out, the first: {left_out[0]}" if left_out else "."
        where = f"Folder {', '.join(map(str, inputs))} holds no picture" if inputs else "No picture was given"
        raise UserError(f"{where}{why}" if left_out else f"{where}; name pictures or folders of pictures.")
    first: dict[Path, Path] = {}
    for job in jobs:
        if job.name in first:
            raise UserError(
                f"{first[job.name]} and {job.source} would both be written as {job.name}.png; "
                "rename one or segment them into different folders."
            )
        first[job.name] = job.source
    return Inputs(jobs, left_out, masks)


def _named(folder: Path, images: Sequence[str]) -> list[ImageJob]:
    """Return jobs whose names are paths without an ending; where two would have one name, with it."""
    bare = [Path(path) if "#" in Path(path).suffix else Path(path).with_suffix("") for path in images]
    count = Counter(bare)
    return [
        ImageJob(folder / path, Path(path) if count[name] > 1 else name)
        for path, name in zip(images, bare, strict=True)
    ]
