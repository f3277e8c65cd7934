"""Any folder of images, with or without labels. Masks beside the images are told from them, and offered as labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.data.audit import Found, channel_notes, find_images
from common.data.classes import ClassTable
from common.data.formats import parse_reading
from common.data.manifest import Entry
from common.data.masks import MaskKind, label_values
from common.errors import UserError
from common.system.cli import option
from partitions.sources.base import DATASETS, TRAIN_EVAL, Dataset, LoadJob, SourceFacts, need_folder

_LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")  # JPEG would change class numbers
# the word of --labels for masks that were found
_AUTO = "auto"
# values of masks that become classes without a class table; more are no class numbers (edges that were smoothed)
_MOST_VALUES = 32
# sentences about what was left out that are printed; the rest is counted
_MOST_SENTENCES = 20


def _below(root: Path, given: str | None, option: str) -> Path:
    path = root if given is None else (root / given).resolve()
    if not path.is_relative_to(root):
        raise UserError(
            f"{option} {given} lies outside --root {root}; choose a root above both, as manifests hold paths "
            "relative to it."
        )
    return need_folder(path, option if given is not None else "--root", "give an existing folder.")


_OPTIONS = (
    option("--images", "SUB", "Images lie in ROOT/SUB."),
    option(
        "--labels",
        "SUB|auto",
        "Label maps of class numbers in ROOT/SUB; needs --classes. auto: those that were found, for scoring alone "
        "(auto:TEXT: whose pattern holds TEXT).",
    ),
    option(
        "--label-suffix",
        "TEXT",
        "Label names' ending: '_mask' for a.jpg and a_mask.png.",
        default="",
    ),
    option("--keep-masks", None, "Take files that look like masks too.", is_flag=True),
    option("--channels", "R,G,B", "Of images with more channels: which are seen (default: 1,2,3)."),
    option(
        "--window", "LOW,HIGH", "Of images of more than 8 bits: black and white (default: each file's own)."
    ),
)


@DATASETS.register(
    "folder",
    summary="any folder of images, searched recursively; labels are optional",
    facts=SourceFacts(
        "Masks are found and not taken. Without other --domain-* options the top folder of an image is its domain.",
        "a folder of images",
        place=13,
        options=_OPTIONS,
    ),
)
def _read(job: LoadJob) -> Dataset:
    args, root = job.args, job.root
    images = _below(root, args.images, "--images")
    auto = (
        args.labels is not None
        and args.labels.partition(":")[0] == _AUTO
        and not (root / args.labels).is_dir()
    )
    reading = parse_reading(args.window, args.channels)
    labels = None if args.labels is None or auto else _below(root, args.labels, "--labels")
    if labels is not None and args.classes is None:
        raise UserError(
            "--labels is given without --classes; name a class table or a JSON file, as label values mean "
            "nothing without it."
        )
    if labels == images and not args.label_suffix:
        raise UserError(f"--labels and the images are the same folder {images}; give --label-suffix.")
    # masks may lie beside the images' folder, which only the root shows
    place = root if auto else images
    found = find_images(place, () if labels in (None, images) else (labels,), keep_masks=args.keep_masks)
    inside = [path for path in found.images if (place / path).is_relative_to(images)]
    if not inside:
        raise UserError(_nothing(found))
    entries = [_entry(root, images, place / path) for path in inside]
    if labels is not None:
        entries = [entry for entry in entries if not _is_label(entry, labels, images, args.label_suffix)]
        entries = [_labelled(entry, root, images, labels, args.label_suffix) for entry in entries]
    notes = (*channel_notes(found), *_left_out(found))
    data = Dataset(entries, settings=dict(reading.as_settings()), notes=notes)
    if auto:
        return _with_masks(data, found, args.labels.partition(":")[2], job)
    return Dataset(entries, settings=data.settings, notes=(*_offer(found, labels is not None), *notes))


def _entry(root: Path, images: Path, path: Path) -> Entry:
    inside = path.relative_to(images)
    return Entry(path.relative_to(root).as_posix(), None, inside.parts[0] if len(inside.parts) > 1 else None)


def _is_label(entry: Entry, labels: Path, images: Path, suffix: str) -> bool:
    return labels == images and Path(entry.image).stem.endswith(suffix)


def _labelled(entry: Entry, root: Path, images: Path, labels: Path, suffix: str) -> Entry:
    """Return an entry with its label map; raises `UserError` where there is none."""
    path = root / entry.image
    stem = labels / path.relative_to(images).parent / (path.stem + suffix)
    found = [stem.with_name(stem.name + ending) for ending in _LABEL_SUFFIXES]
    existing = [candidate for candidate in found if candidate.is_file()]
    if not existing:
        raise UserError(
            f"The image {path} has no label map {found[0]} (or bmp, tif, gif); add the file, leave the "
            "image out, or drop --labels."
        )
    return Entry(entry.image, existing[0].relative_to(root).as_posix(), entry.domain)


def _nothing(found: Found) -> str:
    text = f"{found.folder} holds no images"
    if found.left_out:
        return f"{text} that can be taken; {len(found.left_out)} are left out, the first: {found.left_out[0]}"
    return f"{text} (jpg, png, tif, webp, gif and others), directly or in folders; check --root."


def _left_out(found: Found) -> list[str]:
    more = len(found.left_out) - _MOST_SENTENCES
    lines = [f"left out: {sentence}" for sentence in found.left_out[:_MOST_SENTENCES]]
    return lines + ([f"left out: {more} more files"] if more > 0 else [])


def _offer(found: Found, labelled: bool) -> list[str]:
    """Say which masks were found and not taken, and how they serve as labels."""
    lines = []
    usable = [kind for kind in found.masks if kind.single and not kind.differ]
    for kind in found.masks:
        line = f"not taken as images: {len(kind.files)} mask{'s' * (len(kind.files) > 1)} ({kind.pattern})"
        if kind.differ:
            line += f"; {len(kind.differ)} differ in size, the first: {next(iter(kind.differ.values()))}"
        elif kind.single and not labelled:
            name = f":{kind.pattern.split('*')[0] or kind.pattern.split('*')[1]}" if len(usable) > 1 else ""
            line += f"; score by them with --labels auto{name}"
        elif not kind.single and kind.image_of:
            line += "; several belong to one image, so that they are no label maps"
        lines.append(line)
    return [*lines, "--keep-masks takes them as images"] if lines else []


def _chosen(found: Found, text: str) -> MaskKind:
    """Return the kind of masks that serves as labels; raises `UserError` where there is none, or several."""
    fitting = [kind for kind in found.masks if kind.single and text in kind.pattern]
    known = ", ".join(kind.pattern for kind in found.masks) or "none"
    if not fitting:
        raise UserError(
            f"--labels auto: no masks in {found.folder} have one image each{f' and hold {text!r}' if text else ''}; "
            f"found: {known}."
        )
    most = max(len(kind.image_of) for kind in fitting)
    best = [kind for kind in fitting if len(kind.image_of) == most]
    if len(best) > 1:
        raise UserError(
            f"--labels auto: several kinds of masks fit ({', '.join(kind.pattern for kind in best)}); say which by a "
            "part of its name, --labels auto:TEXT."
        )
    return best[0]


def _with_masks(data: Dataset, found: Found, text: str, job: LoadJob) -> Dataset:
    """Return the data set with masks as labels of an evaluation manifest; sites stay without them."""
    kind, root = _chosen(found, text), job.root
    if kind.differ and not job.args.skip_unreadable:
        raise UserError(
            f"{next(iter(kind.differ.values()))} Make both the same size, or leave them out with "
            f"--skip-unreadable ({len(kind.differ)} differ)."
        )
    pairs = [(mask, image) for mask, image in kind.image_of.items() if mask not in kind.differ]
    lossy = next((mask for mask, _ in pairs if Path(mask).suffix.lower() not in _LABEL_SUFFIXES), None)
    if lossy is not None:
        raise UserError(
            f"The mask {lossy} is no PNG, BMP, TIFF or GIF: its values are not exact; convert it from the source."
        )
    label_of = {image: mask for mask, image in pairs}
    labelled = [Entry(e.image, label_of[e.image], e.domain) for e in data.images if e.image in label_of]
    if not labelled:
        raise UserError(f"--labels auto: no mask of {kind.pattern} belongs to an image that is taken.")
    classes = job.classes or _table_of([root / str(entry.label) for entry in labelled], kind.pattern)
    notes = [
        f"{len(labelled)} of {len(data.images)} images have a label ({kind.pattern}): see {TRAIN_EVAL}.jsonl"
    ]
    if job.classes is None:
        notes.append(f"their classes: {', '.join(classes.names)}; name them by --classes FILE")
    return Dataset(
        data.images,
        classes=classes,
        evaluation={TRAIN_EVAL: labelled},
        settings=data.settings,
        notes=(*notes, *data.notes),
    )


def _table_of(labels: Sequence[Path], pattern: str) -> ClassTable:
    """Return a class table with a class for each value; raises `UserError` for values that are no classes."""
    values = label_values(labels)
    if not 2 <= len(values) <= _MOST_VALUES:
        raise UserError(
            f"The masks {pattern} hold {len(values)} values; expected 2 to {_MOST_VALUES}, one for each class, so name "
            "a class table by --classes (a JSON file)."
        )
    free = max(value for value in range(len(values), 256) if value not in values)
    return ClassTable(
        name="values",
        names=tuple(f"value {value}" for value in values),
        remap={value: place for place, value in enumerate(values)},
        ignore=free,
    )
