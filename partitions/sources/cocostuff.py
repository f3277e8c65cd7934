"""CocoStuff, divided by its list files or by one list per site."""

from __future__ import annotations

from pathlib import Path

from common.data.manifest import Entry, natural_key
from common.errors import UserError
from common.system.cli import option
from partitions.leaf import read_names
from partitions.sources.base import DATASETS, Dataset, LoadJob, SourceFacts, need_files, need_folder

TRAIN_LIST = "curated/train2017/Coco164kFull_Stuff_Coarse.txt"
VAL_LIST = "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt"


def read_list(path: Path) -> list[str]:
    """Return the image names of a list file, one a line, without ending; `UserError` as `read_names`, or for paths."""
    names = read_names(path)
    for name in names:
        if "/" in name or "\\" in name or name.startswith("."):
            raise UserError(f"The list {path} holds {name!r}; expected bare names such as 000000066064.")
    return names


def _entries(names: list[str], split: str, domain: str | None) -> list[Entry]:
    return [Entry(f"images/{split}/{n}.jpg", f"annotations/{split}/{n}.png", domain) for n in names]


def _site_lists(folder: Path) -> list[Entry]:
    """Return the entries of all ``*.txt`` in a folder, each list one domain, in natural order."""
    files = sorted(need_folder(folder, "--site-lists", "expected one list file per site.").glob("*.txt"))
    if not files:
        raise UserError(f"--site-lists {folder} holds no .txt; expected one list file per site.")
    entries: list[Entry] = []
    owner: dict[str, str] = {}
    for path in sorted(files, key=lambda file: natural_key(file.name)):
        for name in read_list(path):
            if name in owner:
                raise UserError(
                    f"The lists {owner[name]} and {path.name} both name {name}; an image belongs to one site."
                )
            owner[name] = path.name
        entries += _entries([n for n, o in owner.items() if o == path.name], "train2017", path.stem)
    return entries


_OPTIONS = (
    option("--train-list", "FILE", f"Training images (default: ROOT/{TRAIN_LIST})."),
    option("--val-list", "FILE", f"Evaluation images (default: ROOT/{VAL_LIST})."),
    option("--site-lists", "DIR", "Folder with one list per site, in place of --by, --sites, --train-list."),
)


@DATASETS.register(
    "cocostuff",
    summary="CocoStuff with coarse classes (--classes cocostuff-27, -15 or -3); 18 skewed sites, or lists of your own",
    facts=SourceFacts(
        "ROOT/images/{train2017,val2017}/ID.jpg, ROOT/annotations/{train2017,val2017}/ID.png with fine ids 0 to 181, "
        "ROOT/curated/... lists of ids. val.jsonl is written as a labelled manifest.",
        "CocoStuff",
        place=5,
        options=_OPTIONS,
        rule="dirichlet over classes, 18 sites",
        classes="cocostuff-27",
    ),
)
def _read(job: LoadJob) -> Dataset:
    args, root = job.args, job.root
    if args.site_lists is not None:
        if args.by not in (None, "domain") or args.train_list is not None:
            raise UserError("--site-lists says which image goes where; leave --by and --train-list out.")
        images = _site_lists(Path(args.site_lists))
    else:
        images = _entries(read_list(Path(args.train_list or root / TRAIN_LIST)), "train2017", None)
    evaluation = _entries(read_list(Path(args.val_list or root / VAL_LIST)), "val2017", None)
    need_files(root, images, "train2017")
    need_files(root, evaluation, "val2017")
    listed = args.site_lists is not None
    return Dataset(
        images,
        evaluation={"val": evaluation},
        rule="domain" if listed else "dirichlet",
        sites=None if listed else 18,
    )
