"""How is IDDA read, as FedDrive's folders of domains or as the reduced set with its list files?"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from common.data.classes import ClassTable, load_table
from common.data.images import read_label
from common.data.manifest import Entry
from common.errors import UserError
from partitions import scenarios
from partitions.leaf import Clients, Sample, read_clients
from partitions.rules import characteristic_class
from partitions.sources.base import Dataset, Progress, Source, need_files, need_folder, pictures_below
from partitions.sources.leaf import place, train_eval

SAME, DIFFERENT = "ts1", "ts2"
"""Evaluation manifests: other images of the clients' domains; images of domains that no client holds."""

_TEST_USERS = {"test_user_same_domain": SAME, "test_user_diff_domain": DIFFERENT}


def domain_of(image: str) -> str:
    """Return TOWN_WEATHER_CAR of an image named ``NUMBER_TOWN_WEATHER_CAR``, whatever folder it is in."""
    return PurePosixPath(image).stem.partition("_")[2]


def _label_of(image: str) -> str:
    """Return the label map of an image ``DOMAIN/RGB/NAME.jpg``."""
    path = PurePosixPath(image)
    return (path.parent.parent / "Semantic" / f"{path.stem}.png").as_posix()


def _completed(samples: list[Sample]) -> list[Sample]:
    """Add domains, and label maps where a list names none."""
    return [Sample(s.x, s.y or _label_of(s.x), domain_of(s.x)) for s in samples]


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scenario",
        choices=tuple(scenarios.UNSEEN),
        help="what no client sees: country: town T07; rainy: weather HRN; bus: car B (default: country)",
    )
    parser.add_argument(
        "--distribution",
        choices=scenarios.DISTRIBUTIONS,
        help="heterogeneous: a client is a domain; uniform: images of all domains; class-imbalance: few classes "
        "of few domains (default: heterogeneous)",
    )
    parser.add_argument(
        "--lists",
        metavar="DIR",
        help="published lists of a scenario, DIR/train/*.json and DIR/test/*.json, in place of drawing by --seed",
    )


def _load(args: argparse.Namespace, stage: Path, progress: Progress | None) -> Dataset:
    root = need_folder(Path(args.root), "--root", "expected IDDA.").resolve()
    table = load_table(args.classes or "idda-16")
    if (root / "train.json").is_file():
        given = {"--scenario": args.scenario, "--distribution": args.distribution, "--lists": args.lists}
        extra = next((option for option, value in given.items() if value is not None), None)
        if extra is not None:
            raise UserError(
                f"{extra} is given but {root / 'train.json'} says which image goes where; leave the option out, or "
                "point --root to the folders of domains."
            )
        settings = {"form": "reduced"}
        train, tests = _reduced(root)
    else:
        if (root / "IDDAsmall").is_dir():
            root = root / "IDDAsmall"
        scenario, distribution = args.scenario or "country", args.distribution or "heterogeneous"
        settings = {"form": "domains", "scenario": scenario, "distribution": distribution}
        if args.lists is not None:
            settings |= {"lists": str(args.lists)}
            train, tests = _published(Path(args.lists))
        else:
            train, tests = _drawn(root, scenario, distribution, args.seed, table)
    images, owner = place(train, "{id}", None)
    evaluation = train_eval(images) | {
        name: place({name: samples}, "{id}", None)[0] for name, samples in tests.items() if samples
    }
    for name, entries in {"train": images, **evaluation}.items():
        need_files(root, entries, name)
    return Dataset(
        name="idda",
        root=root,
        images=images,
        classes=table,
        evaluation=evaluation,
        rule="lists",
        settings=dict(settings),
        clients=owner,
    )


def _reduced(root: Path) -> tuple[Clients, Clients]:
    """Read train.json {client: [name]}, test_same_dom.txt and test_diff_dom.txt; names have no folder."""

    def placed(clients: Clients) -> Clients:
        return {
            client: [Sample(f"images/{s.x}.jpg", f"labels/{s.x}.png", domain_of(s.x)) for s in samples]
            for client, samples in clients.items()
        }

    tests = {
        name: next(iter(read_clients([root / file]).values()))
        for name, file in ((SAME, "test_same_dom.txt"), (DIFFERENT, "test_diff_dom.txt"))
    }
    return placed(read_clients([root / "train.json"])), placed(tests)


def _published(folder: Path) -> tuple[Clients, Clients]:
    for part in ("train", "test"):
        need_folder(folder / part, "--lists", "expected the published train/*.json and test/*.json in it.")
    tests = read_clients([folder / "test"])
    unknown = next((user for user in tests if user not in _TEST_USERS), None)
    if unknown is not None:
        raise UserError(
            f"The lists in {folder / 'test'} hold the user {unknown!r}; expected {', '.join(_TEST_USERS)}."
        )
    train = {client: _completed(samples) for client, samples in read_clients([folder / "train"]).items()}
    named = {_TEST_USERS[user]: _completed(samples) for user, samples in tests.items()}
    return train, {name: named[name] for name in (SAME, DIFFERENT) if name in named}


def _drawn(
    root: Path, scenario: str, distribution: str, seed: int, table: ClassTable
) -> tuple[Clients, Clients]:
    domains = {
        folder.name: [p.relative_to(root).as_posix() for p in pictures_below(folder / "RGB")]
        for folder in sorted(root.iterdir())
        if (folder / "RGB").is_dir()
    }
    if not any(domains.values()):
        raise UserError(
            f"{root} holds neither DOMAIN/RGB/NAME.jpg nor train.json; expected IDDA, so check --root."
        )
    unseen = [image for d, found in domains.items() if scenarios.is_unseen(d, scenario) for image in found]
    seen = {d: found for d, found in domains.items() if not scenarios.is_unseen(d, scenario)}
    if not seen:
        raise UserError(
            f"All domains of {root} are unseen in scenario {scenario!r}; choose another --scenario."
        )
    train, test = scenarios.hold_out(seen, seed)
    if distribution == "uniform":
        clients = scenarios.uniform(train, seed)
    elif distribution == "class-imbalance":
        clients = scenarios.class_imbalance(
            train, scenario, seed, lambda images: _standing_out(root, images, table)
        )
    else:
        clients = train

    def samples(images: list[str]) -> list[Sample]:
        return _completed([Sample(image) for image in images])

    tests = {SAME: samples([i for found in test.values() for i in found]), DIFFERENT: samples(unseen)}
    return {client: samples(images) for client, images in clients.items()}, tests


def _standing_out(root: Path, images: list[str], table: ClassTable) -> npt.NDArray[np.int64]:
    """Return the class that stands out in each image, int64 [N], from its label map."""
    need_files(root, [Entry(image, _label_of(image)) for image in images], "train")

    def count(image: str) -> npt.NDArray[np.int64]:
        label = read_label(root / _label_of(image), table)
        return np.bincount(label.ravel(), minlength=256)[: table.num_classes].astype(np.int64)

    with ThreadPoolExecutor(4) as pool:
        return characteristic_class(np.stack(list(pool.map(count, images))))


IDDA = Source(
    "idda",
    "IDDA, 16 classes (--classes idda-23: all): sites by --scenario and --distribution, or as its lists say",
    "ROOT/DOMAIN/RGB/N_DOMAIN.jpg and ROOT/DOMAIN/Semantic/N_DOMAIN.png, DOMAIN as T01_CN_A; or the reduced form "
    "ROOT/images/ID.jpg, ROOT/labels/ID.png, ROOT/train.json, test_same_dom.txt, test_diff_dom.txt. Written besides "
    "the sites: train_eval.jsonl (what they train on), ts1.jsonl (same domains), ts2.jsonl (domains unseen).",
    _add_options,
    _load,
    rule="lists",
    classes="idda-16",
)
