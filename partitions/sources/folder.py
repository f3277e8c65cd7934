"""Any folder of images, with or without labels."""

from __future__ import annotations

from pathlib import Path

from common.data.manifest import Entry
from common.errors import UserError
from common.system.cli import option
from partitions.sources.base import DATASETS, Dataset, LoadJob, SourceFacts, images_below, need_folder

_LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # JPEG would change class numbers


def _below(root: Path, given: str | None, option: str) -> Path:
    path = root if given is None else (root / given).resolve()
    if not path.is_relative_to(root):
        raise UserError(
            f"{option} {given} lies outside --root {root}; choose a root above both, as manifests hold paths "
            "relative to it."
        )
    return need_folder(path, option if given is not None else "--root", "give an existing folder.")


_OPTIONS = (
    option("--images", "SUB", "Images lie in ROOT/SUB (default: ROOT itself)."),
    option(
        "--labels",
        "SUB",
        "Label maps lie in ROOT/SUB by the images' names, as PNG, BMP or TIFF of class numbers; needs --classes.",
    ),
    option(
        "--label-suffix",
        "TEXT",
        "Label names' ending: '_mask' for a.jpg and a_mask.png.",
        default="",
    ),
)


@DATASETS.register(
    "folder",
    summary="any folder of images, searched recursively; labels are optional",
    facts=SourceFacts(
        "ROOT holds jpg, jpeg, png, bmp, tif, tiff or webp files, directly or in folders. Without other "
        "--domain-* options the top folder of an image is its domain.",
        "a folder of images",
        place=13,
        options=_OPTIONS,
    ),
)
def _read(job: LoadJob) -> Dataset:
    args, root = job.args, job.root
    images = _below(root, args.images, "--images")
    labels = None if args.labels is None else _below(root, args.labels, "--labels")
    if labels is not None and args.classes is None:
        raise UserError(
            "--labels is given without --classes; name a class table or a JSON file, as label values mean "
            "nothing without it."
        )
    if labels == images and not args.label_suffix:
        raise UserError(f"--labels and the images are the same folder {images}; give --label-suffix.")
    entries = []
    for path in images_below(images, skip=() if labels in (None, images) else (labels,)):
        inside = path.relative_to(images)
        if labels == images and path.stem.endswith(args.label_suffix):
            continue  # a label map itself
        label = None
        if labels is not None:
            stem = labels / inside.parent / (path.stem + args.label_suffix)
            found = [stem.with_name(stem.name + s) for s in _LABEL_SUFFIXES]
            existing = [candidate for candidate in found if candidate.is_file()]
            if not existing:
                raise UserError(
                    f"The image {path} has no label map {found[0]} (or bmp, tif); add the file, leave the "
                    "image out, or drop --labels."
                )
            label = existing[0].relative_to(root).as_posix()
        domain = inside.parts[0] if len(inside.parts) > 1 else None
        entries.append(Entry(path.relative_to(root).as_posix(), label, domain))
    return Dataset(entries)
