"""CocoStuff and Pascal VOC, which come with lists of their images."""

from __future__ import annotations

from pathlib import Path

from common.data.manifest import Entry
from common.errors import UserError
from common.order import natural_key
from common.system.cli import option
from partitions.leaf import read_names
from partitions.sources.base import DATASETS, Dataset, LoadJob, SourceFacts, need_folder

# the curated lists of published work on clusters of CocoStuff (IIC, PiCIE, STEGO)
TRAIN_LIST = "curated/train2017/Coco164kFull_Stuff_Coarse.txt"
VAL_LIST = "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt"


def _coco_entries(names: list[str], split: str, domain: str | None) -> list[Entry]:
    return [Entry(f"images/{split}/{n}.jpg", f"annotations/{split}/{n}.png", domain) for n in names]


def _site_lists(folder: Path) -> list[Entry]:
    """Return the entries of all ``*.txt`` in a folder, each list one domain, in natural order."""
    files = need_folder(folder, "--site-lists", "expected one list file per site.").glob("*.txt")
    entries: list[Entry] = []
    owner: dict[str, str] = {}
    for path in sorted(files, key=lambda file: natural_key(file.name)):
        names = read_names(path, bare=True)
        for name in names:
            if name in owner:
                raise UserError(
                    f"The lists {owner[name]} and {path.name} both name {name}; an image belongs to one site."
                )
            owner[name] = path.name
        entries += _coco_entries(names, "train2017", path.stem)
    if not entries:
        raise UserError(f"--site-lists {folder} holds no .txt; expected one list file per site.")
    return entries


_LISTS = (
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
        options=_LISTS,
        rule="dirichlet over classes, 18 sites",
        classes="cocostuff-27",
    ),
)
def _read_cocostuff(job: LoadJob) -> Dataset:
    args, root = job.args, job.root
    val = read_names(Path(args.val_list or root / VAL_LIST), bare=True)
    evaluation = {"val": _coco_entries(val, "val2017", None)}
    if args.site_lists is not None:
        if args.by not in (None, "domain") or args.train_list is not None:
            raise UserError("--site-lists says which image goes where; leave --by and --train-list out.")
        return Dataset(_site_lists(Path(args.site_lists)), evaluation=evaluation)
    train = read_names(Path(args.train_list or root / TRAIN_LIST), bare=True)
    images = _coco_entries(train, "train2017", None)
    return Dataset(images, evaluation=evaluation, rule="dirichlet", sites=18)


@DATASETS.register(
    "voc",
    summary="Pascal VOC 2012 segmentation, 21 classes with background; 10 skewed sites",
    facts=SourceFacts(
        "ROOT (VOCdevkit or VOCdevkit/VOC2012) holds JPEGImages, SegmentationClass, ImageSets/Segmentation/{train,val}"
        ".txt. The train images are divided; val.jsonl is written as a labelled manifest.",
        "Pascal VOC",
        place=7,
        rule="dirichlet over classes, 10 sites",
        classes="voc",
    ),
)
def _read_voc(job: LoadJob) -> Dataset:
    # VOCdevkit holds a folder for each year
    root = job.root / "VOC2012" if (job.root / "VOC2012").is_dir() else job.root
    train, val = (
        [Entry(f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png") for name in names]
        for names in (
            read_names(root / f"ImageSets/Segmentation/{split}.txt", bare=True) for split in ("train", "val")
        )
    )
    return Dataset(train, root, evaluation={"val": val}, rule="dirichlet", sites=10)  # no domains
