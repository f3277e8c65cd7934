"""Tells label maps from the images that they belong to, by names and by how few values they hold.

A file is suspected by its name: a folder called ``labels``, ``masks``, ``gt`` and so on; the name of an image with an
ending or a suffix of its own (``a.jpg`` beside ``a.png`` or ``a_mask.png``); or a second folder that holds the names of
another one. It is a mask only where what it shows agrees: nearly all neighboring pixels have one value. So a folder
of faces that wear masks is no folder of masks, and gray images without suspicious names are never opened.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np

from common.data.formats import opened_image, suffix_of
from common.data.images import read_raw_label
from common.errors import UserError

# Words that folders of masks carry, alone or among others ("ann_dir", "SegmentationClass", "panoptic_val2017").
_TEXT = """
label labels labelled mask masks annotation annotations annot annots anno ann gt gts gtfine gtcoarse
groundtruth truth semantic semantics seg segs segmentation segmentations segmentationclass
segmentationobject instance instances panoptic manual target targets labelids trainids colormask
matte mattes
"""
_FOLDER_WORDS = frozenset(_TEXT.split())
_NAME_WORDS = _FOLDER_WORDS | {
    "manual1",
    "manual2",
    "labelid",
    "instanceids",
    "polygons",
    "alpha",
    "trimap",
    "1st",
    "2nd",
}
# Share of neighbors in a row that are equal: masks 0.935 and more, images 0.87 at most (both in ../shared/data)
_FLAT = 0.9
# JPEG spreads values near edges by a little
_JPEG_STEP = 6
# More colors than any class table has: screenshots are flat too
_MOST_VALUES = 256
# Files of a group that are opened, and the share of them that has to look like masks
_SAMPLE, _AGREE = 24, 0.8
# A second folder of an image's name: this share of its names has to be there
_SHARED_NAMES = 0.8


@dataclass
class MaskKind:
    """Masks that are named alike: ``pattern`` says how, ``files`` are relative paths.

    ``image_of`` gives the image of each mask that has one; ``differ`` those of another size, by sentence.
    """

    pattern: str
    files: list[str]
    image_of: dict[str, str] = field(default_factory=dict)
    differ: dict[str, str] = field(default_factory=dict)

    @property
    def single(self) -> bool:
        """Whether each image has one mask of this kind, so that they serve as labels."""
        images = list(self.image_of.values())
        return bool(images) and len(set(images)) == len(images)


def mask_like(path: Path) -> bool:
    """Whether a file shows few values in flat areas, as masks do and photos do not."""
    try:
        with opened_image(path) as opened:
            coded = np.asarray(
                opened if opened.mode in ("1", "L", "P", "I;16", "I") else opened.convert("RGB")
            )
    except UserError:
        return False
    values = coded.astype(np.int64)
    if values.ndim == 3:
        values = (values[..., 0] << 16) + (values[..., 1] << 8) + values[..., 2]
    if values.size == 0 or values.shape[1] < 2:
        return False
    if suffix_of(path) in (".jpg", ".jpeg"):
        gray = coded.astype(np.int64) if coded.ndim == 2 else coded.astype(np.int64).max(axis=2)
        extremes = (gray < 32) | (gray > 223)  # a mask that was saved as JPEG is black and white
        return bool((np.abs(np.diff(gray)) <= _JPEG_STEP).mean() >= _FLAT and extremes.mean() >= _FLAT)
    return bool((values[:, 1:] == values[:, :-1]).mean() >= _FLAT and len(np.unique(values)) <= _MOST_VALUES)


def _agree(folder: Path, files: Sequence[str]) -> bool:
    step = max(1, len(files) // _SAMPLE)
    sample = files[::step][:_SAMPLE]
    return sum(mask_like(folder / path) for path in sample) >= _AGREE * len(sample)


def _words(name: str) -> list[str]:
    """Split a name into words in small letters: ``SegmentationClass`` stays one, ``ann_dir`` is two."""
    return [word for word in re.split(r"[^0-9a-z]+", name.lower()) if word]


def _suspicious(name: str, words: frozenset[str]) -> bool:
    return any(word in words for word in _words(name))


def _tokens(stem: str) -> list[str]:
    return re.findall(r"[^_\-. ]+", stem)


def _groups(paths: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return groups of files that are suspected together, with how they are named; a file may be in several."""
    found: dict[str, list[str]] = defaultdict(list)
    beside: dict[tuple[str, str], list[str]] = defaultdict(list)  # folder and stem -> files
    folders: dict[str, dict[str, str]] = defaultdict(dict)  # folder -> stem -> file
    for path in paths:
        pure = PurePosixPath(path)
        folder = pure.parent.as_posix()
        beside[folder, pure.stem].append(path)
        folders[folder][pure.stem] = path
        named = next((part for part in reversed(pure.parts[:-1]) if _suspicious(part, _FOLDER_WORDS)), None)
        if named is not None:
            tail = _suffix(pure.stem, _NAME_WORDS)
            found[f"{named}/*{tail}{pure.suffix.lower()}"].append(path)
    for (folder, stem), files in beside.items():
        for path in files if len(files) > 1 else ():  # the same name with two endings
            found[f"*{PurePosixPath(path).suffix.lower()} of the same name"].append(path)
        for cut in _cuts(stem):  # the name of an image with a suffix
            if (folder, cut) in beside:
                found[f"*{stem[len(cut) :]}{PurePosixPath(files[0]).suffix.lower()}"] += files
                break
        else:
            tail = _suffix(stem, _NAME_WORDS)
            if tail:
                found[f"*{tail}{PurePosixPath(files[0]).suffix.lower()}"] += files
            elif _suspicious(_tokens(stem)[0] if _tokens(stem) else "", _NAME_WORDS):
                found[f"{_tokens(stem)[0]}*{PurePosixPath(files[0]).suffix.lower()}"] += files
    for first, second in _twin_folders(folders):
        found[f"{second}/*"] += folders[second].values()
        found[f"{first}/*"] += folders[first].values()
    return [(pattern, list(dict.fromkeys(files))) for pattern, files in found.items()]


def _suffix(stem: str, words: frozenset[str]) -> str:
    """Return the end of a stem from its first suspicious word on: ``_gtFine_labelIds``; empty: none."""
    parts = list(re.finditer(r"[^_\-. ]+", stem))
    for before, part in pairwise(parts):
        if part.group().lower() in words or re.sub(r"\d+$", "", part.group().lower()) in words:
            return stem[before.end() :]
    return ""


def _cuts(stem: str) -> list[str]:
    """Return the beginnings of a stem that end before a separator, longest first."""
    return [stem[: found.start()] for found in reversed(list(re.finditer(r"[_\-. ]", stem))) if found.start()]


def _twin_folders(folders: dict[str, dict[str, str]]) -> Iterable[tuple[str, str]]:
    """Yield pairs of folders that differ in one part of their path and hold the same names."""
    by_place: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for folder in folders:
        parts = PurePosixPath(folder).parts
        for place in range(len(parts)):
            by_place[(*parts[:place], "*", *parts[place + 1 :])].append(folder)
    for twins in by_place.values():
        if 2 <= len(twins) <= 8:  # more are sites or drives, not images and masks
            for first in twins:
                for second in twins:
                    common = folders[first].keys() & folders[second].keys()
                    if first != second and len(common) >= _SHARED_NAMES * len(folders[second]):
                        yield first, second


def find_masks(folder: Path, paths: Sequence[str]) -> list[MaskKind]:
    """Return the kinds of masks among files below ``folder``, each with the images that they belong to.

    Files that look like masks without an image among the rest are masks too where their folder is called so; where
    nothing would be left, all are images.
    """
    kinds: list[MaskKind] = []
    taken: set[str] = set()
    candidates = [path for path in paths if suffix_of(path) not in (".nii", ".nii.gz", ".dcm", ".dicom")]
    for pattern, files in sorted(_groups(candidates), key=lambda group: -len(group[1])):
        left = [path for path in files if path not in taken]
        if left and _agree(folder, left):
            kinds.append(MaskKind(pattern, left))
            taken.update(left)
    images = [path for path in paths if path not in taken]
    if not images:
        return []
    for kind in kinds:
        kind.image_of = _images_of(kind.files, images)
        for mask, image in kind.image_of.items():
            sentence = _sizes_differ(folder, image, mask)
            if sentence:
                kind.differ[mask] = sentence
    return kinds


def _images_of(masks: Sequence[str], images: Sequence[str]) -> dict[str, str]:
    """Return the image of each mask: by its name, by its beginning, or as the only one beside it."""
    by_stem: dict[str, list[str]] = defaultdict(list)
    by_start: dict[str, list[str]] = defaultdict(list)
    by_end: dict[str, list[str]] = defaultdict(list)  # without its first word: img_7 and mask_7
    by_folder: dict[str, list[str]] = defaultdict(list)
    for image in images:
        pure = PurePosixPath(image)
        by_stem[pure.stem.lower()].append(image)
        for cut in _cuts(pure.stem.lower()):
            by_start[cut].append(image)
        by_end[_without_first(pure.stem.lower())].append(image)
        by_folder[pure.parent.parent.as_posix()].append(image)
    found = {}
    for mask in masks:
        pure = PurePosixPath(mask)
        stem = pure.stem.lower()
        near = by_stem.get(stem)
        for cut in () if near else _cuts(stem):
            near = by_stem.get(cut) or by_start.get(cut)
            if near:
                break
        end = _without_first(stem)
        if not near and end:  # mask_7.png for 7.png or img_7.png
            near = by_stem.get(end) or by_end.get(end)
        if not near and len(by_folder[pure.parent.parent.as_posix()]) == 1:
            near = by_folder[pure.parent.parent.as_posix()]
        if near:
            closest = max(near, key=lambda image: len(set(PurePosixPath(image).parts) & set(pure.parts)))
            found[mask] = closest
    return found


def _without_first(stem: str) -> str:
    """Return a stem without its first word; empty where there is no other."""
    return re.sub(r"^[^_\-. ]+[_\-. ]?", "", stem)


def _sizes_differ(folder: Path, image: str, mask: str) -> str | None:
    """Return a sentence where two files differ in size, by their headers; None: they do not, or one cannot be read."""
    try:
        with opened_image(folder / image) as first, opened_image(folder / mask) as second:
            sizes = first.size, second.size
    except UserError:
        return None
    if sizes[0] == sizes[1]:
        return None
    (width, height), (wide, high) = sizes
    return f"The image {image} is {width} x {height} but its label map {mask} is {wide} x {high} pixels."


def label_values(paths: Iterable[Path]) -> list[int]:
    """Return the values that label maps hold; `UserError` for a file that is none."""
    counts = np.zeros(256, dtype=np.int64)
    for path in paths:
        counts += np.bincount(read_raw_label(path).ravel(), minlength=256)
    return [int(value) for value in np.flatnonzero(counts)]
