"""Manifests: the images of a site, one JSON line each, and the ``partition.json`` beside them."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from common.data.checksums import check_manifest, check_partition_file, with_checksums
from common.data.classes import ClassTable
from common.data.formats import AS_FOUND, Reading
from common.data.paths import Fence, below_root
from common.errors import UserError, user_error
from common.order import natural_key
from common.system.atomic import atomic_write_text

PARTITION_FILE = "partition.json"
# the setting of ``partition.json`` by which a data set says that its images may need `Shard.repair_sizes`
REPAIR_SIZES = "repair_sizes"
# Views by name: which share of the spare height lies above it, of the spare width to its left. Wide scenes lose much
# when they are squeezed into a backbone's input, so FUSS trains on four corners and the center, half as high and wide.
VIEWS: dict[str, tuple[float, float]] = {
    "top-left": (0.0, 0.0),
    "top-right": (0.0, 1.0),
    "bottom-left": (1.0, 0.0),
    "bottom-right": (1.0, 1.0),
    "center": (0.5, 0.5),
}
# a view anywhere: "at-DOWN-ACROSS", the same two shares
_ANYWHERE = re.compile(r"at-(0\.\d+|[01])-(0\.\d+|[01])")
_LINE = 'expected {"image": "path"} and, if any, label, domain, view and site as texts'


def view_place(view: str) -> tuple[float, float]:
    """Return which share of the spare height lies above a view, of the spare width to its left."""
    found = _ANYWHERE.fullmatch(view)
    return VIEWS[view] if found is None else (float(found[1]), float(found[2]))


def _known_view(view: str) -> str:
    if view not in VIEWS and not _ANYWHERE.fullmatch(view):
        raise ValueError(f"expected one of {', '.join(VIEWS)}, or at-DOWN-ACROSS, shares of the spare room")
    return view


_Relative = Annotated[str, AfterValidator(below_root)]


@dataclass(frozen=True)
class Entry:
    """One line of a manifest; paths are relative to the data root, with forward slashes.

    With a ``view`` (see `VIEWS`) it stands for that part of image and label only. ``site`` says whose
    image it is in a manifest that several sites' images are scored by.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # checked where it is read; code makes entries unchecked

    image: _Relative
    label: _Relative | None = None
    domain: str | None = None
    view: Annotated[str, AfterValidator(_known_view)] | None = None
    site: str | None = None

    def to_line(self) -> str:
        """Return the JSON line, without keys that say nothing."""
        return json.dumps({k: v for k, v in asdict(self).items() if v is not None}, ensure_ascii=False)


@dataclass(frozen=True)
class Shard:
    """The images of one site (or of one evaluation split), and the root that their paths start from.

    ``repair_sizes``: images that differ in size from their label map are resized to it when they are
    read as pairs (`common.data.images`); otherwise they are an error in the data. ``reading``: how values of more
    than 8 bits, and more than three channels, are seen.
    """

    name: str
    path: Path
    root: Path
    entries: tuple[Entry, ...]
    classes: ClassTable | None = None
    repair_sizes: bool = False
    reading: Reading = AS_FOUND

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def labelled(self) -> bool:
        """Whether every image has a label path (and there is at least one image)."""
        return bool(self.entries) and all(entry.label is not None for entry in self.entries)

    def image_path(self, index: int) -> Path:
        """Return the file of image ``index``."""
        return self.root / self.entries[index].image

    def label_path(self, index: int) -> Path | None:
        """Return the label file of image ``index``, or None where the manifest names none."""
        label = self.entries[index].label
        return None if label is None else self.root / label


@dataclass(frozen=True)
class Partition:
    """What ``partition.json`` says about a folder of shards.

    ``sites`` counts the images of every site, ``domains`` splits that count by domain, ``histogram`` holds labelled
    pixels per class and site (None without labels), ``evaluation`` the labelled manifests that are no site.
    ``settings`` are notes of the data set; `REPAIR_SIZES` and those of `Reading` are read back.
    """

    dataset: str
    rule: str
    seed: int
    root: Path
    sites: dict[str, int]
    classes: ClassTable | None = None
    histogram: dict[str, list[int]] | None = None
    domains: dict[str, dict[str, int]] = field(default_factory=dict)
    evaluation: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict, compare=False)

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Return plain JSON values for a ``partition.json`` in ``folder``.

        A root inside the folder is written relative to it, so that the folder can be moved or
        mounted elsewhere as a whole; any other root is absolute.
        """
        inside = self.root.is_relative_to(folder)
        root = self.root.relative_to(folder).as_posix() if inside else str(self.root)
        order = "dataset rule seed root settings sites evaluation domains histogram classes"
        data = {name: getattr(self, name) for name in order.split()}
        return data | {"root": root, "classes": self.classes and self.classes.to_json()}


@functools.cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    """Return the reader of `Entry` or `Partition`, made when first needed: start-up does not wait for it."""
    return TypeAdapter(kind)


def read_manifest(path: str | Path, root: Path) -> tuple[Entry, ...]:
    """Read and check the lines of a manifest; images and labels are neither opened nor looked up.

    Raises `UserError` naming file and line where a line is broken, an image comes twice, or a path
    leaves ``root``.
    """
    source = Path(path)
    try:
        # not splitlines, which also breaks at U+2028, U+2029 and U+0085, and names may hold those
        lines = source.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(
            f"The manifest {source} does not exist; write one with `python -m partitions`."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The manifest {source} cannot be read ({error}); expected JSON lines.") from None
    fence = Fence(root)
    parse = _adapter(Entry).validate_json
    entries: list[Entry] = []
    first_line: dict[tuple[str, str | None], int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{source} line {number}"
        try:
            entry: Entry = parse(line)
        except ValidationError as error:
            raise user_error(error, f"{where}:", _LINE) from None
        shown = (entry.image, entry.view)
        if shown in first_line:
            raise UserError(
                f"{where} names the image {entry.image!r} of line {first_line[shown]} again; "
                "keep one of the two lines."
            )
        first_line[shown] = number
        fence.check(entry.image, "image", where)
        if entry.label is not None:
            fence.check(entry.label, "label", where)
        entries.append(entry)
    if not entries:
        raise UserError(f"The manifest {source} names no image; expected one JSON line per image.")
    return tuple(entries)


def read_shard(
    path: str | Path, data_root: str | Path | None = None, classes: ClassTable | None = None
) -> Shard:
    """Read the manifest of one site.

    Data root and class table are those given, else those of the ``partition.json`` beside the manifest, else its own
    folder and None. Raises `UserError` as `read_manifest` does, and where the root is no folder.
    """
    source = Path(path)
    if source.is_dir():
        raise UserError(
            f"{source} is a folder; give one manifest in it, for example {source / 'site-0.jsonl'}."
        )
    partition = read_partition(source.parent) if (source.parent / PARTITION_FILE).is_file() else None
    known = source.parent if partition is None else partition.root
    root = known if data_root is None else Path(data_root)
    if not root.is_dir():
        raise UserError(
            f"The data root {root} of {source} is no folder; say where the data lie now (--data-root)."
        )
    classes = partition.classes if classes is None and partition else classes
    settings = {} if partition is None else partition.settings
    entries = read_manifest(source, root)
    check_manifest(source, {} if partition is None else partition.checksums)
    return Shard(
        source.stem,
        source,
        root.resolve(),
        entries,
        classes,
        settings.get(REPAIR_SIZES) is True,
        Reading.of(settings, f"{source.parent / PARTITION_FILE}:"),
    )


def write_manifest(path: str | Path, entries: Iterable[Entry]) -> None:
    """Write one JSON line per entry, atomically."""
    atomic_write_text(path, "".join(entry.to_line() + "\n" for entry in entries))


def write_partition(folder: str | Path, partition: Partition, final: Path | None = None) -> None:
    """Write ``partition.json`` into ``folder``; ``final`` is where the folder will lie, if elsewhere."""
    target = Path(folder)
    data = with_checksums(partition.to_json((final or target).resolve()), target)
    atomic_write_text(target / PARTITION_FILE, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def read_partition(folder: str | Path) -> Partition:
    """Read the ``partition.json`` of a folder of shards; `UserError` where it is absent or broken."""
    path = Path(folder) / PARTITION_FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no {PARTITION_FILE}; make shards with `python -m partitions`."
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); make the shards again.") from None
    try:
        partition: Partition = _adapter(Partition).validate_json(text)
    except ValidationError as error:
        raise user_error(error, f"{path}:", "make the shards again") from None
    check_partition_file(text, path)
    return replace(partition, root=Path(os.path.normpath(path.parent.resolve() / partition.root)))


def read_sites(folder: str | Path, data_root: str | Path | None = None) -> list[Shard]:
    """Read all sites of a folder of shards, site-0, site-1, ..., as `read_shard` does.

    Without a ``partition.json`` every ``site-*.jsonl`` counts, so hand-written folders work too.
    """
    base = Path(folder)
    if not base.is_dir():
        raise UserError(f"The shards folder {base} does not exist; make it with `python -m partitions`.")
    found = [path.stem for path in base.glob("site-*.jsonl")]
    names = list(read_partition(base).sites) if (base / PARTITION_FILE).is_file() else found
    if not names:
        raise UserError(f"{base} holds no site-*.jsonl; make shards with `python -m partitions`.")
    return [read_shard(base / f"{name}.jsonl", data_root) for name in sorted(names, key=natural_key)]


def pool_shards(shards: Sequence[Shard], name: str) -> Shard:
    """Join shards of one data root into one, in the given order; an image that two hold comes once."""
    if len({shard.reading for shard in shards}) > 1:
        raise UserError("The shards to join read values by other windows or channels; make them alike.")
    roots = {shard.root for shard in shards}
    if len(roots) > 1:
        raise UserError(
            f"The shards to join have the data roots {', '.join(sorted(map(str, roots)))}; "
            "expected a single one."
        )
    entries: dict[tuple[str, str | None], Entry] = {}
    for shard in shards:
        for entry in shard.entries:
            entries.setdefault((entry.image, entry.view), entry)
    classes = next((shard.classes for shard in shards if shard.classes is not None), None)
    repair = any(shard.repair_sizes for shard in shards)
    first = shards[0]
    return Shard(name, first.path, first.root, tuple(entries.values()), classes, repair, first.reading)
