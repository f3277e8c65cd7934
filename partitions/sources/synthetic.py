"""Street scenes drawn on the spot, the data set that needs no files."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from click import IntRange

from common.data.manifest import Entry
from common.errors import UserError
from common.system.cli import Progress, option, parse_size
from partitions.drawing.scenes import VERSION, make_scenes
from partitions.sources.base import DATASETS, Dataset, LoadJob, SourceFacts

_RECORD = "scenes.json"
_Drawn = tuple[list[list[Entry]], list[Entry]]  # of every drive, of the unseen one


_OPTIONS = (
    option("--images-per-site", "N", "Images of each site (default: 80).", type=IntRange(1), default=80),
    option("--size", "HxW", "Height x width (default: 160x224).", type=parse_size, default="160x224"),
    option("--eval-images", "N", "Scenes of the unseen drive (default: 60).", type=IntRange(0), default=60),
)


@DATASETS.register(
    "synthetic",
    summary="street scenes drawn on the spot, 8 classes; sites differ in place, light and colours",
    facts=SourceFacts(
        "Nothing is needed. Images go to ROOT, by default OUT/data; eval.jsonl is a labelled drive in "
        "conditions that no site holds.",
        "",
        place=1,
        options=_OPTIONS,
        needs_root=False,
        classes="synthetic",
    ),
)
def _read(job: LoadJob) -> Dataset:
    args = job.args
    size: tuple[int, int] = args.size
    if max(size) > 2048:  # drawing takes seconds an image beyond
        raise UserError(f"--size is {size[0]}x{size[1]}; expected 32 to 2048 pixels each way.")
    sites = 4 if args.sites is None else args.sites
    if not 1 <= sites <= 1000:
        raise UserError(f"--sites is {sites}; expected 1 to 1000 for synthetic scenes.")
    natural = args.by in (None, "domain") and not args.custom_domains
    drives = sites if natural else 4  # a rule of the user's deals four drives out
    per_drive = args.images_per_site if natural else math.ceil(sites * args.images_per_site / drives)
    wanted = {
        "seed": args.seed,
        "drives": drives,
        "images": per_drive,
        "unseen": args.eval_images,
        "size": list(size),
    }
    root = job.stage / "data" if args.root is None else Path(args.root).resolve()
    shards, unseen = _draw_once(root, wanted, job.progress)
    return Dataset(
        [entry for shard in shards for entry in shard],
        root,
        evaluation={"eval": unseen} if unseen else {},
        settings={"size": f"{size[0]}x{size[1]}", "drives": drives},
    )


def _draw_once(root: Path, wanted: dict[str, Any], progress: Progress | None) -> _Drawn:
    """Use the scenes in ``root`` if they are those ``wanted``; draw them if it is empty or absent."""
    made = {"version": VERSION, **wanted}
    if (root / _RECORD).is_file():
        known = json.loads((root / _RECORD).read_text(encoding="utf-8"))
        if known["made"] == made:
            parts = [[Entry(*entry) for entry in part] for part in known["entries"]]
            return parts[:-1], parts[-1]
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(
            f"--root {root} holds other files; give a new or empty folder for the synthetic scenes."
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        shards, unseen = make_scenes(temporary, **wanted, progress=progress)
        listed = [[[e.image, e.label, e.domain] for e in part] for part in (*shards, unseen)]
        (temporary / _RECORD).write_text(json.dumps({"made": made, "entries": listed}), encoding="utf-8")
        temporary.chmod(0o755)
        temporary.replace(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return shards, unseen
