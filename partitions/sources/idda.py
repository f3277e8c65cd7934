"""IDDA: FedDrive's folders of domains, divided by scenario and distribution or by lists, or the reduced set."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
from partitions.sources.idda_clients import (
    DISTRIBUTIONS,
    UNSEEN,
    class_imbalance,
    hold_out,
    in_domain,
    is_reduced,
    is_unseen,
    label_of,
    listed,
    reduced,
    uniform,
)
from partitions.sources.leaf import place, train_eval

_DOMAIN = re.compile(r"T\d\d_[A-Z]+_[A-Z]")

_OPTIONS = (
    option(
        "--scenario",
        "S",
        "What no client sees: country (town T07, default), rainy or bus (car B).",
        type=Choice(tuple(UNSEEN)),
    ),
    option(
        "--distribution",
        "D",
        "heterogeneous: a client is a domain (default); uniform: of all domains; class-imbalance: few classes.",
        type=Choice(DISTRIBUTIONS),
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
    given = {"--scenario": args.scenario, "--distribution": args.distribution}
    if is_reduced(root, args.lists is not None):
        own = str(root / "train.json")
        _refuse({**given, "--lists": args.lists}, own, "point --root to the folders of domains")
        settings = {"form": "reduced"}
        train, tests = reduced(root)
    else:
        root = root / "IDDAsmall" if (root / "IDDAsmall").is_dir() else root
        if args.lists is not None:
            _refuse(given, f"--lists {args.lists}", "leave --lists out")
            settings = {"form": "domains", "lists": str(args.lists)}
            train, tests = listed(Path(args.lists))
        else:
            scenario, distribution = args.scenario or "country", args.distribution or "heterogeneous"
            settings = {"form": "domains", "scenario": scenario, "distribution": distribution}
            train, tests = _drawn(root, scenario, distribution, args, table)
    images, owner = place(train)
    evaluation = train_eval(images) | {
        name: place({name: samples})[0] for name, samples in tests.items() if samples
    }
    _check_tests(images, evaluation)
    return Dataset(images, root, evaluation=evaluation, rule="lists", settings=dict(settings), clients=owner)


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


def _refuse(given: dict[str, str | None], lists: str, otherwise: str) -> None:
    """Raise `UserError` for the first option that was given although lists say all."""
    extra = next((option for option, value in given.items() if value is not None), None)
    if extra is not None:
        raise UserError(
            f"{extra} is given but {lists} says which image goes where; leave {extra} out, or {otherwise}."
        )


def _drawn(
    root: Path, scenario: str, distribution: str, args: SimpleNamespace, table: ClassTable
) -> tuple[Clients, Clients]:
    """Draw the clients, and what is scored, from the folders of domains."""
    if distribution == "class-imbalance" and args.quick:
        raise UserError(
            "--quick is given, but --distribution class-imbalance divides by the classes in the label maps and reads "
            "them all; leave --quick out, or choose heterogeneous or uniform."
        )
    domains: dict[str, list[str]] = {}
    for folder in sorted(root.iterdir()):
        if (folder / "RGB").is_dir():
            domains[folder.name] = [p.relative_to(root).as_posix() for p in images_below(folder / "RGB")]
        elif _DOMAIN.fullmatch(folder.name):
            raise UserError(f"The domain {folder} has no folder RGB; complete it or take it away.")
    if not any(domains.values()):
        return {}, {}
    seen = {domain: images for domain, images in domains.items() if not is_unseen(domain, scenario)}
    unseen = [image for domain, images in domains.items() if domain not in seen for image in images]
    if not seen:
        raise UserError(
            f"All domains of {root} are unseen in scenario {scenario!r}; choose another --scenario."
        )
    train, test = hold_out(seen, args.seed)
    clients = train
    if distribution == "uniform":
        clients = uniform(train, args.seed)
    elif distribution == "class-imbalance":
        clients = class_imbalance(
            train, scenario, args.seed, lambda images: _standing_out(root, images, table)
        )

    def samples(images: Sequence[str]) -> list[ListedImage]:
        return [in_domain(ListedImage(image)) for image in images]

    tests = {SAME: samples([i for images in test.values() for i in images]), DIFFERENT: samples(unseen)}
    return {client: samples(images) for client, images in clients.items()}, tests


def _standing_out(root: Path, images: list[str], table: ClassTable) -> npt.NDArray[np.int64]:
    """Return the class that stands out in each image, int64 [N], from its label map."""
    need_files(root, [Entry(image, label_of(image)) for image in images], "train")

    def count(image: str) -> npt.NDArray[np.int64]:
        label = read_label(root / label_of(image), table)
        return np.bincount(label.ravel(), minlength=256)[: table.num_classes].astype(np.int64)

    with ThreadPoolExecutor(4) as pool:
        return characteristic_class(np.stack(list(pool.map(count, images))))
