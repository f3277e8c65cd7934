"""GTA5, whose labels are palette indices and whose sizes do not always fit."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from common.data.manifest import REPAIR_SIZES, Entry
from common.errors import UserError
from common.system.cli import option
from partitions.leaf import read_names
from partitions.sources.base import CITYSCAPES_IDS, DATASETS, Dataset, LoadJob, SourceFacts, images_below


def _entry(line: str, where: Path) -> Entry:
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
    return [_entry(line, path) for line in read_names(path)]


_OPTIONS = (
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
        options=_OPTIONS,
        rule="one site",
        classes="gta5-19",
        tables=CITYSCAPES_IDS,
    ),
)
def _read(job: LoadJob) -> Dataset:
    args, root = job.args, job.root
    test = _listed(root, args.test_list, "test.txt")
    images = _listed(root, args.train_list, "train.txt")
    if images is None:
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
        sites=1,
        settings={REPAIR_SIZES: True},
    )
