"""What does `python -m partitions` accept, and what does it say?"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.data.classes import TABLES
from common.errors import UserError, report_user_errors
from common.system.cli import CommandParser, progress_line
from partitions import domains, export
from partitions.adaptation import adapt, parse_roles
from partitions.output import staged_folder
from partitions.plan import Request, Split, plan, write
from partitions.rules import RULES
from partitions.sources import SOURCES, Dataset, Source

_INTRODUCTION = """\
Divide a data set on disk into shards, one per site. ImageDataset stay where they are: a shard is a list
of paths. Written are OUT/site-0.jsonl, site-1.jsonl, ..., labelled evaluation manifests where the
data set has them, OUT/partition.json (the record) and OUT/split.png (look at it first).
"""
_EXAMPLES = """\
examples:
  python -m partitions synthetic --sites 4 --out shards/synthetic
  python -m partitions camvid --root ../shared/data/camvid --by domain --out shards/camvid
  python -m partitions folder --root my-pictures --by domain --domain-level 1 --out shards/mine
  python -m partitions camvid --root ../shared/data/camvid --by dirichlet --sites 5 --out shards/skew
  python -m partitions camvid --root ../shared/data/camvid --sites-of dusk_a,carpark_a,carpark_b \\
      --source day_a,day_b,day_c,day_d --score dusk_b,carpark_c --out shards/camvid-adapt

`python -m partitions DATASET --help` shows the options of a data set; `python -m partitions export` turns a
split into lists for other systems, which `python -m partitions leaf` reads (those of IDDA: `idda --lists`).
"""


def _seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no seed, expected a whole number from 0 up")
    return int(text)


def _add_common_options(parser: argparse.ArgumentParser, source: Source) -> None:
    where = parser.add_argument_group("what and where")
    where.add_argument(
        "--root",
        metavar="R",
        required=source.needs_root,
        help="folder of the data set" if source.needs_root else "folder for the pictures (default: OUT/data)",
    )
    where.add_argument("--out", metavar="DIR", required=True, help="folder for the shards; new or empty")
    where.add_argument("--overwrite", action="store_true", help="replace an earlier split in OUT")
    where.add_argument(
        "--classes",
        metavar="TABLE",
        default=None,
        help=f"class table: {', '.join(sorted(TABLES))}, or a JSON file "
        f"(default: {source.classes or 'none'})",
    )

    how = parser.add_argument_group("how to divide")
    how.add_argument(
        "--sites", type=int, metavar="N", help="number of sites; --by domain: one per domain if absent"
    )
    how.add_argument(
        "--by",
        metavar="RULE",
        help="; ".join(f"{name}: {text}" for name, text in RULES.items())
        + f" (default: {source.rule}; iid where images have no domain)",
    )
    how.add_argument("--seed", type=_seed, default=0, metavar="S", help="seed of every draw (default: 0)")
    how.add_argument(
        "--alpha",
        type=float,
        default=0.5,
        help="dirichlet: 0.1 is strong skew, 100 nearly none (default: 0.5)",
    )
    how.add_argument(
        "--over",
        choices=("auto", "classes", "domains"),
        default="auto",
        help="dirichlet: what is skewed (default: classes where there are labels, else domains)",
    )

    which = parser.add_argument_group("which domain an image is from (default: what the data set says)")
    which = which.add_mutually_exclusive_group()  # type: ignore[assignment]
    which.add_argument("--domain-csv", metavar="FILE", help="CSV with a header; rows name images and domains")
    which.add_argument(
        "--domain-regex", metavar="RE", help="first group of RE in the path relative to the root"
    )
    which.add_argument(
        "--domain-level", type=int, metavar="N", help="N-th folder of that path, 1 is the topmost"
    )
    parser.add_argument(
        "--domain-column", metavar="C", default="domain", help="column of --domain-csv (default: domain)"
    )

    roles = parser.add_argument_group(
        "adaptation: domains with labels teach, others learn without (names separated by commas)"
    )
    roles.add_argument(
        "--sites-of", metavar="A,B", help="domains that are divided into sites, whose manifests name no label"
    )
    roles.add_argument(
        "--source", dest="source_of", metavar="C,D", help="domains that become the labelled source.jsonl"
    )
    roles.add_argument("--score", metavar="E,F", help="domains that become the labelled target.jsonl")

    care = parser.add_argument_group("care")
    care.add_argument(
        "--no-labels",
        action="store_true",
        help="keep label paths out of the site manifests; training without labels needs none. Evaluation "
        "manifests keep theirs, and the class mix is still counted here for partition.json and split.png",
    )
    care.add_argument(
        "--quick",
        action="store_true",
        help="check no picture and no label map: faults are not found, and no class mix is counted",
    )
    care.add_argument(
        "--skip-unreadable", action="store_true", help="leave damaged images out instead of refusing"
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser, one sub-command per data set."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = CommandParser(
        "python -m partitions", description=_INTRODUCTION, epilog=_EXAMPLES, formatter_class=shape
    )
    commands = parser.add_subparsers(
        dest="dataset", metavar="DATASET", required=True, parser_class=CommandParser
    )
    for source in SOURCES.values():
        sub = commands.add_parser(
            source.name, help=source.help, description=f"{source.help}. {source.layout}"
        )
        _add_common_options(sub, source)
        source.add_options(sub)
        sub.set_defaults(source=source)
    export.add_options(commands.add_parser(export.NAME, help=export.HELP, description=f"{export.HELP}."))
    return parser


def _check_dataset(arguments: Sequence[str]) -> None:
    """Name a near match where the first word is no data set: argparse would only list them all."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in (*SOURCES, export.NAME):
        near = difflib.get_close_matches(arguments[0], SOURCES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"There is no data set {arguments[0]!r}: {hint}expected one of {', '.join(SOURCES)}.")


def _with_domains(data: Dataset, args: argparse.Namespace) -> Dataset:
    images = data.images
    if args.domain_csv is not None:
        images = domains.from_csv(images, Path(args.domain_csv), args.domain_column)
    elif args.domain_regex is not None:
        images = domains.from_regex(images, args.domain_regex)
    elif args.domain_level is not None:
        images = domains.from_level(images, args.domain_level)
    return replace(data, images=images)


def summary(split: Split) -> str:
    """Return the table of sites: images, domains, commonest classes."""
    classes = split.dataset.classes
    lines = [f"{'site':<18}{'images':>7}  {'domains':<48}commonest classes"]

    def line(name: str, count: int, found: dict[str, int], histogram: list[int] | None) -> str:
        text = ", ".join(f"{d} {c}" if len(found) > 1 else d for d, c in list(found.items())[:3])
        text += ", ..." if len(found) > 3 else ""
        common = "-"
        if histogram is not None and classes is not None:
            total = max(1, sum(histogram))
            pairs = sorted(zip(histogram, classes.names, strict=True), key=lambda pair: -pair[0])[:3]
            common = ", ".join(f"{label} {100 * pixels / total:.0f} %" for pixels, label in pairs)
        return f"{name:<18}{count:>7}  {text:<48}{common}"

    partition = split.partition()
    for name, count in partition.sites.items():
        counted = None if partition.histogram is None else partition.histogram[name]
        lines.append(line(name, count, partition.domains[name], counted))
    for name, count in partition.evaluation.items():
        counts = split.evaluation_histograms.get(name)
        summed = None if counts is None else [int(n) for n in counts.sum(axis=0)]
        lines.append(line(f"{name} (eval)", count, {}, summed))
    return "\n".join(lines)


@report_user_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; bad input gives one sentence and exit code 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _check_dataset(given)
    args = build_parser().parse_args(given)
    if args.dataset == export.NAME:
        print(export.run(args))
        return 0
    if args.by is not None and args.by not in RULES:
        near = difflib.get_close_matches(args.by, RULES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"There is no rule {args.by!r}: {hint}expected one of {', '.join(RULES)}.")
    chosen = (args.domain_csv, args.domain_regex, args.domain_level)
    args.custom_domains = any(option is not None for option in chosen)
    roles = parse_roles(args.sites_of, args.source_of, args.score)
    request = Request(
        rule=args.by or "domain",
        sites=args.sites,
        seed=args.seed,
        alpha=args.alpha,
        over=args.over,
        keep_labels=not args.no_labels,
        decode=not args.quick,
        skip_unreadable=args.skip_unreadable,
    )
    out = Path(args.out)
    source: Source = args.source
    source.check_table(args.classes)
    with staged_folder(out, args.overwrite) as stage:
        data = _with_domains(source.load(args, stage, progress_line("drawing")), args)
        if roles is not None:
            data = adapt(data, roles)
        if args.by is None:
            bare = data.rule == "domain" and not any(entry.domain for entry in data.images)
            request = replace(request, rule="iid" if bare and args.sites else data.rule)
        if args.sites is None and request.rule == data.rule:
            request = replace(request, sites=data.sites)
        split = plan(data, request, progress_line("checking"))
        write(split, stage, out)
    print(summary(split))
    for sentence in split.skipped:
        print(f"left out: {sentence}")
    print(f"\nwritten to {out}; look at {out / 'split.png'}, then for example:")
    print(f"  python -m client check --shard {out / 'site-0.jsonl'}")
    print(f"  python -m server simulate --recipe recipes/RECIPE.toml --shards {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
