"""The command that divides a data set on disk into shards, one per site."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import typer
from click import Choice, Command, IntRange, Option

from common.data.classes import table_names
from common.data.formats import Reading
from common.data.manifest import Shard
from common.errors import UserError
from common.evaluation.site_agreement import warn_before
from common.system.cli import (
    CommandLine,
    FlexibleCommand,
    escaped,
    need_name,
    option,
    print_table,
    progress_line,
)
from partitions import domains
from partitions.domains import adapt, parse_roles
from partitions.leaf import Form, export_lists
from partitions.output import staged_folder, write
from partitions.plan import Request, Split, plan
from partitions.rules import DIVISIONS
from partitions.sources.base import Dataset, SourceFacts, datasets, load_dataset

_INTRODUCTION = """\
Divide a data set on disk into shards, one per site. Images stay where they are: a shard is a list of paths. \
Written are OUT/site-0.jsonl, site-1.jsonl, ..., labelled evaluation manifests where the data set has them, \
OUT/partition.json (the record) and OUT/split.png (look at it first).
"""
_EXAMPLES = """\
examples:

python -m partitions synthetic --sites 4 --out shards/synthetic

python -m partitions camvid --root ../shared/data/camvid --by domain --out shards/camvid

python -m partitions folder --root my-images --domain-level 1 --out shards/mine

python -m partitions camvid --root ../shared/data/camvid --sites-of dusk_a,carpark_a \
--source day_a,day_b --score dusk_b --out shards/camvid-adapt
"""
# sites whose images are compared with each other, at 0.6 s each
_MOST_COMPARED = 24
_DIVISION, _DOMAINS = "Division", "Domains, and their roles in adaptation (names separated by commas)"


def _common_options(source: SourceFacts) -> list[Option]:
    """Return the options that every data set has."""
    root = "Folder of the data set." if source.needs_root else "Folder for images (default: OUT/data)."
    divide, name = partial(option, group=_DIVISION), partial(option, group=_DOMAINS)
    return [
        option("--root", "R", root, required=source.needs_root),
        option("--out", "DIR", "Folder for the shards; new or empty.", required=True),
        option("--overwrite", None, "Replace an earlier split in OUT.", is_flag=True),
        option("--classes", "T", f"Class table: name or JSON file (default: {source.classes or 'none'})."),
        option("--no-labels", None, "Open no label of the sites.", is_flag=True),
        option("--quick", None, "Check no file and count no class.", is_flag=True),
        option("--skip-unreadable", None, "Leave damaged images out.", is_flag=True),
        divide("--sites", "N", "Number of sites; --by domain: one per domain if absent.", type=int),
        divide("--by", "RULE", f"{', '.join(DIVISIONS)}: see `list` (default: {source.rule})."),
        divide("--seed", "S", "Seed of every draw (default: 0).", type=IntRange(0), default=0),
        divide("--alpha", "A", "dirichlet: 0.1 skews, 100 hardly (default: 0.5).", type=float, default=0.5),
        divide(
            "--over",
            "WHAT",
            "dirichlet: classes or domains.",
            type=Choice(("auto", "classes", "domains")),
            default="auto",
        ),
        name("--domain-csv", "FILE", "CSV with a row for each image's domain."),
        name("--domain-column", "C", "Its column (default: domain).", default="domain"),
        name("--domain-regex", "RE", "First group of RE in the path below the root."),
        name("--domain-level", "N", "N-th folder of that path, 1 is the topmost.", type=int),
        name("--sites-of", "A,B", "Domains that become sites, without labels."),
        name("--source source_of", "C,D", "Domains that become the labelled source."),
        name("--score", "E,F", "Domains that become the labelled target."),
    ]


def _commands() -> list[Command]:
    """Return one command per data set."""
    return [
        FlexibleCommand(
            entry.name,
            params=[*entry.facts.options, *_common_options(entry.facts)],
            callback=partial(_divide, entry.name),
            help=escaped(f"{entry.summary}. {entry.facts.layout}"),
            short_help=escaped(entry.summary),
            rich_help_panel="Data sets",
        )
        for entry in datasets()
    ]


def _with_domains(data: Dataset, args: SimpleNamespace) -> Dataset:
    images = data.images
    if args.domain_csv is not None:
        images = domains.from_csv(images, Path(args.domain_csv), args.domain_column)
    elif args.domain_regex is not None:
        images = domains.from_regex(images, args.domain_regex)
    elif args.domain_level is not None:
        images = domains.from_level(images, args.domain_level)
    return replace(data, images=images)


def _print_summary(split: Split) -> None:
    """Print the table of sites: images, domains, commonest classes."""
    partition, classes = split.partition(), split.dataset.classes

    def domains_of(name: str) -> str:
        found = partition.domains[name]
        text = ", ".join(f"{d} {n}" if len(found) > 1 else d for d, n in list(found.items())[:3])
        return text + (", ..." if len(found) > 3 else "")

    def commonest(name: str) -> str:
        if name not in split.histograms or classes is None:
            return "-"
        counts = split.histograms[name]
        # stable: of equally common classes the first of the table
        first = np.argsort(-counts, kind="stable")[:3]
        return ", ".join(f"{classes.names[c]} {100 * counts[c] / max(1, counts.sum()):.0f} %" for c in first)

    rows = [(name, str(n), domains_of(name), commonest(name)) for name, n in partition.sites.items()]
    rows += [(f"{name} (eval)", str(n), "", commonest(name)) for name, n in partition.evaluation.items()]
    print_table(("site", "images", "domains", "commonest classes"), rows, numbers=("images",))


def _divide(dataset: str, **given: Any) -> None:
    """Divide one data set as the options say; nothing is left behind where that fails."""
    args = SimpleNamespace(**given)
    if args.by is not None:
        need_name(args.by, DIVISIONS, "rule")
    chosen = [name for name in ("domain_csv", "domain_regex", "domain_level") if given[name] is not None]
    if len(chosen) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in chosen[:2])
        raise UserError(f"{first} and {second} both say which domain an image is from; give one of them.")
    args.custom_domains = bool(chosen)
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
    with staged_folder(out, args.overwrite) as stage:
        data = _with_domains(load_dataset(dataset, args, stage, progress_line("drawing")), args)
        if roles is not None:
            data = adapt(data, roles)
        if args.by is None:
            # without domains, a number of sites can only mean a random deal
            bare = data.rule == "domain" and not any(entry.domain for entry in data.images)
            request = replace(request, rule="iid" if bare and args.sites else data.rule)
        if args.sites is None and request.rule == data.rule:
            request = replace(request, sites=data.sites)
        split = plan(data, request, progress_line("checking"))
        write(split, stage, out)
    _print_summary(split)
    if data.notes:
        print("\n" + "\n".join(data.notes))
    if dataset == "folder" and request.decode:
        shards = [Shard(name, out, split.dataset.root, tuple(split.entries(name))) for name in split.sites]
        reading = Reading.of(split.dataset.settings, dataset)
        for warning in warn_before([replace(shard, reading=reading) for shard in shards[:_MOST_COMPARED]]):
            print(f"warning: {warning.text}")
    for sentence in split.skipped:
        print(f"left out: {sentence}")
    print(f"\nwritten to {out}; look at {out / 'split.png'}, then for example:")
    print(f"  python -m client check --shard {out / 'site-0.jsonl'}")
    print(f"  python -m server simulate --recipe recipes/RECIPE.toml --shards {out}")


_line = CommandLine("python -m partitions", _INTRODUCTION, "data set", made=_commands(), epilog=_EXAMPLES)


@_line.command("--shards shards/camvid --format leaf --out camvid.json")
def _export(
    *,
    shards: Annotated[Path, typer.Option(metavar="DIR", help="Folder made by this command.")],
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            metavar="F",
            help="leaf: paths below the data root, with label maps; flat: {client: \\[name]}; text: one name per line, "
            "without folder and ending.",
        ),
    ] = "leaf",
    manifest: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Write this evaluation manifest (ts1, say) in place of the sites."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The list to write; must not exist yet.")],
) -> None:
    """Write an earlier split as a list for other systems."""
    print(export_lists(shards, out, form, manifest))


@_line.command("")
def _list() -> None:
    """List data sets, rules to divide by, and class tables."""
    print_table(("data set", ""), [(entry.name, entry.summary) for entry in datasets()])
    print()
    print_table(("rule", ""), DIVISIONS.items())
    print("\nclass tables: " + ", ".join(table_names()))


partition_commands, partitions_main = _line, _line.run

if __name__ == "__main__":
    sys.exit(partitions_main())
