"""IDDA, as FedDrive's folders of domains or as the reduced set with its list files."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
from click import Choice

from common.data.classes import ClassTable
from common.data.images import read_label
from common.data.manifest import Entry
from common.errors import UserError
from common.system.cli import option
from partitions.leaf import Clients, ListedImage
from partitions.rules import characteristic_class
from partitions.sources import idda_clients
from partitions.sources.base import (
    DATASETS,
    DIFFERENT,
    SAME,
    Dataset,
    LoadJob,
    SourceFacts,
    images_below,
    need_files,
)
from partitions.sources.idda_clients import in_domains, is_reduced, label_of, listed, reduced
from partitions.sources.leaf import place, train_eval

_DOMAIN = re.compile(r"T\d\d_[A-Z]+_[A-Z]")
Division = tuple[dict[str, str], Clients, Clients]
"""What partition.json says of it, the clients, and what is scored, by manifest."""


_OPTIONS = (
    option(
        "--scenario",
        "S",
        "What no client sees: country (town T07, default), rainy or bus (car B).",
        type=Choice(tuple(idda_clients.UNSEEN)),
    ),
    option(
        "--distribution",
        "D",
        "heterogeneous: a client is a domain (default); uniform: of all domains; class-imbalance: few classes.",
        type=Choice(idda_clients.DISTRIBUTIONS),
    ),
    option(
        "--lists",
        "DIR",
        "Published lists in place of a draw: DIR/train/*.json and test/*.json, or as those of the reduced form.",
    ),
)


@DATASETS.register(
    "idda",
    summary="IDDA, 16 classes (--classes idda-23: all): sites by --scenario and --distribution, or as its lists say",
    facts=SourceFacts(
        "ROOT/DOMAIN/RGB/N_DOMAIN.jpg and ROOT/DOMAIN/Semantic/N_DOMAIN.png, DOMAIN as T01_CN_A; or the reduced form "
        "ROOT/images/ID.jpg, ROOT/labels/ID.png, ROOT/train.json, test_same_dom.txt, test_diff_dom.txt, whose lists "
        "--lists takes for the folders of domains too. Written besides "
        "the sites: train_eval.jsonl (what they train on), ts1.jsonl (same domains), ts2.jsonl (domains unseen).",
        "IDDA",
        place=9,
        options=_OPTIONS,
        rule="lists",
        classes="idda-16",
        tables=("idda-16", "idda-23"),
    ),
)
def _read(job: LoadJob) -> Dataset:
    args, root, table = job.args, job.root, job.classes
    assert table is not None, "it has a default"
    if is_reduced(root, args.lists is not None):
        settings, train, tests = _divide_reduced(args, root)
    else:
        root = root / "IDDAsmall" if (root / "IDDAsmall").is_dir() else root
        settings, train, tests = _divide_domains(args, root, table)
    images, owner = place(train, "{id}", None)
    evaluation = train_eval(images) | {
        name: place({name: samples}, "{id}", None)[0] for name, samples in tests.items() if samples
    }
    _check_tests(images, evaluation)
    for name, entries in {"train": images, **evaluation}.items():
        need_files(root, entries, name)
    return Dataset(
        images,
        root,
        evaluation=evaluation,
        rule="lists",
        settings=dict(settings),
        clients=owner,
    )


def _check_tests(images: list[Entry], evaluation: dict[str, list[Entry]]) -> None:
    """Refuse lists by which known and unseen domains are not told apart."""
    held = {entry.domain for entry in images}
    same = {entry.image for entry in evaluation.get(SAME, [])}
    for entry in evaluation.get(DIFFERENT, []):
        if entry.image in same:
            raise UserError(
                f"The lists score {entry.image} in {SAME} and in {DIFFERENT}, as known and as unseen; name it in one."
            )
        if entry.domain in held:
            raise UserError(
                f"The lists score {entry.image} in {DIFFERENT}, as of an unseen domain, but clients hold images of "
                f"{entry.domain}; restore the lists."
            )


def _divide_reduced(args: SimpleNamespace, root: Path) -> Division:
    given = {"--scenario": args.scenario, "--distribution": args.distribution, "--lists": args.lists}
    _refuse(given, str(root / "train.json"), "point --root to the folders of domains")
    return {"form": "reduced"}, *reduced(root)


def _divide_domains(args: SimpleNamespace, root: Path, table: ClassTable) -> Division:
    if args.lists is not None:
        given = {"--scenario": args.scenario, "--distribution": args.distribution}
        _refuse(given, f"--lists {args.lists}", "leave --lists out")
        return {"form": "domains", "lists": str(args.lists)}, *listed(Path(args.lists))
    scenario, distribution = args.scenario or "country", args.distribution or "heterogeneous"
    if distribution == "class-imbalance" and args.quick:
        raise UserError(
            "--quick is given, but --distribution class-imbalance divides by the classes in the label maps and reads "
            "them all; leave --quick out, or choose heterogeneous or uniform."
        )
    settings = {"form": "domains", "scenario": scenario, "distribution": distribution}
    return settings, *_drawn(root, scenario, distribution, args.seed, table)


def _refuse(given: dict[str, str | None], lists: str, otherwise: str) -> None:
    """Raise `UserError` for the first option that was given although lists say all."""
    extra = next((option for option, value in given.items() if value is not None), None)
    if extra is not None:
        raise UserError(
            f"{extra} is given but {lists} says which image goes where; leave {extra} out, or {otherwise}."
        )


def _drawn(
    root: Path, scenario: str, distribution: str, seed: int, table: ClassTable
) -> tuple[Clients, Clients]:
    bare = next(
        (f for f in sorted(root.iterdir()) if _DOMAIN.fullmatch(f.name) and not (f / "RGB").is_dir()), None
    )
    if bare is not None:
        raise UserError(f"The domain {bare} has no folder RGB; complete it or take it away.")
    domains = {
        folder.name: [p.relative_to(root).as_posix() for p in images_below(folder / "RGB")]
        for folder in sorted(root.iterdir())
        if (folder / "RGB").is_dir()
    }
    if not any(domains.values()):
        raise UserError(
            f"{root} holds neither DOMAIN/RGB/NAME.jpg nor train.json; expected IDDA, so check --root."
        )
    unseen = [image for d, found in domains.items() if idda_clients.is_unseen(d, scenario) for image in found]
    seen = {d: found for d, found in domains.items() if not idda_clients.is_unseen(d, scenario)}
    if not seen:
        raise UserError(
            f"All domains of {root} are unseen in scenario {scenario!r}; choose another --scenario."
        )
    train, test = idda_clients.hold_out(seen, seed)
    if distribution == "uniform":
        clients = idda_clients.uniform(train, seed)
    elif distribution == "class-imbalance":
        clients = idda_clients.class_imbalance(
            train, scenario, seed, lambda images: _standing_out(root, images, table)
        )
    else:
        clients = train

    def samples(images: list[str]) -> list[ListedImage]:
        return in_domains([ListedImage(image) for image in images])

    tests = {SAME: samples([i for found in test.values() for i in found]), DIFFERENT: samples(unseen)}
    return {client: samples(images) for client, images in clients.items()}, tests


def _standing_out(root: Path, images: list[str], table: ClassTable) -> npt.NDArray[np.int64]:
    """Return the class that stands out in each image, int64 [N], from its label map."""
    need_files(root, [Entry(image, label_of(image)) for image in images], "train")

    def count(image: str) -> npt.NDArray[np.int64]:
        label = read_label(root / label_of(image), table)
        return np.bincount(label.ravel(), minlength=256)[: table.num_classes].astype(np.int64)

    with ThreadPoolExecutor(4) as pool:
        return characteristic_class(np.stack(list(pool.map(count, images))))
