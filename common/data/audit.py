"""Finds the images of a folder, and says what it left out and why: links, names, formats, masks.

Partitioning and segmenting look at folders by this file alone, so that both take the same images.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from common.data import volumes
from common.data.formats import SUFFIXES, shown, split_frame, suffix_of
from common.data.manifest import PARTITION_FILE
from common.data.masks import MaskKind, find_masks
from common.data.paths import Fence, name_fault
from common.errors import UserError
from common.order import natural_key

# endings of images and films that are not read; other files are passed over in silence
_TEXT = """
.svg .eps .pdf .psd .xcf .ico .tga .exr .hdr .dng .cr2 .cr3 .nef .arw .orf .rw2 .mp4 .avi .mov .mkv
.webm .mpg .npy .npz .mat .h5 .hdf5 .mha .mhd .nrrd .svs .ndpi .czi .lif .nd2 .jxl .jls .dds .pcx
.fits
"""
_OTHER_KINDS = frozenset(_TEXT.split())
# of images of more than 8 bits or three channels, how many are opened to find them out
_SAMPLE = 40


@dataclass
class Found:
    """What lies below a folder.

    ``images`` are paths relative to it, with forward slashes, in natural order; a slice of a volume is
    ``brain.nii.gz#12``. ``masks`` are the kinds of label maps that were told from images; ``left_out`` has a sentence
    for each other file that is not taken.
    """

    folder: Path
    images: list[str] = field(default_factory=list)
    masks: list[MaskKind] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def find_images(folder: Path, skip: Iterable[Path] = (), *, keep_masks: bool = False) -> Found:
    """Return the images below ``folder``, and what else lies there.

    Hidden files and folders, folders in ``skip`` and output folders of `python -m partitions` are passed over. A link
    to what is found anyway is passed over too; one that leads out of ``folder`` is left out with a sentence.
    With ``keep_masks`` nothing is taken for a mask. Only files that may be masks are opened.
    """
    found = Found(folder)
    paths = _listed(found, folder, skip)
    if not keep_masks:
        found.masks = find_masks(folder, paths)
        masks = {path for kind in found.masks for path in kind.files}
        paths = [path for path in paths if path not in masks]
    for path in paths:
        try:
            slices = volumes.frames(folder / path)
        except UserError as error:
            found.left_out.append(str(error))
            continue
        found.images += [path] if slices is None else [f"{path}#{k}" for k in slices]
    return found


def _listed(found: Found, folder: Path, skip: Iterable[Path]) -> list[str]:
    """Return image files below ``folder`` by their relative paths, in natural order."""
    passed, fence = {path.resolve() for path in skip}, Fence(folder)
    plain: list[str] = []
    links: list[str] = []
    others: Counter[str] = Counter()
    for name_of_base, folders, files in os.walk(folder):
        base = Path(name_of_base)
        below = base.relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for name in sorted(folders):
            path = base / name
            if (
                path.is_symlink()
                and not name.startswith(".")
                and not path.resolve().is_relative_to(fence.root)
            ):
                found.left_out.append(_link_out(path, folder))
        folders[:] = [name for name in folders if _entered(base / name, passed)]
        for name in files:
            if name.startswith("."):
                continue
            suffix = suffix_of(name)
            others[suffix] += suffix in _OTHER_KINDS
            if suffix in SUFFIXES:
                (links if (base / name).is_symlink() else plain).append(prefix + name)
    known = {(folder / path).resolve() for path in plain} if links else set()
    for link in links:
        if not fence.holds(link):
            found.left_out.append(_link_out(folder / link, folder))
        elif (folder / link).resolve() not in known:
            plain.append(link)
    found.left_out += [
        f"{count} file{'s' * (count > 1)} with the ending {suffix} in {shown(folder)}: a format that is not read; "
        "convert to PNG, JPEG or TIFF."
        for suffix, count in sorted(others.items())
        if count
    ]
    fine = []
    for name in sorted(plain, key=natural_key):
        fault = name_fault(name)
        if fault is None and not (folder / name).is_file():
            fault = "it is no file, or a link to nothing; remove it"
        if fault is None:
            fine.append(name)
        else:
            found.left_out.append(f"{shown(folder / name)} is left out: {fault}.")
    return fine


def _entered(path: Path, passed: set[Path]) -> bool:
    return not (
        path.name.startswith(".")
        or path.is_symlink()
        or path.resolve() in passed
        or (path / PARTITION_FILE).is_file()
    )


def _link_out(path: Path, folder: Path) -> str:
    return (
        f"{shown(path)} is a symbolic link out of {shown(folder)}, and is left out; copy the files, or name a folder "
        "above both."
    )


def channel_notes(found: Found) -> list[str]:
    """Return a sentence for each number of channels above three that a sample of the images has."""
    step = max(1, len(found.images) // _SAMPLE)
    many: set[int] = set()
    for path in found.images[::step]:
        try:
            many.add(volumes.channel_count(split_frame(found.folder / path)[0]))
        except UserError:
            continue  # said where it is decoded
    return [
        f"images of {count} channels: by default 1, 2 and 3 are seen as red, green and blue (--channels)"
        for count in sorted(many)
        if count > 3
    ]
