"""IDDA: FedDrive's folders of domains, divided by scenario and distribution or by lists, or the reduced set."""

from __future__ import annotations

from pathlib import Path

from click import Choice

from common.data.manifest import Entry
from common.errors import UserError
from common.system.cli import option
from partitions.sources.base import DATASETS, DIFFERENT, SAME, Dataset, LoadJob, SourceFacts
from partitions.sources.idda_clients import DISTRIBUTIONS, UNSEEN, drawn, is_reduced, listed, reduced
from partitions.sources.leaf import place, train_eval

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
            if distribution == "class-imbalance" and args.quick:
                raise UserError(
                    "--quick is given, but --distribution class-imbalance divides by the classes in the label maps and "
                    "reads them all; leave --quick out, or choose heterogeneous or uniform."
                )
            train, tests = drawn(root, scenario, distribution, args.seed, table)
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
