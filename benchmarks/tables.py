"""Runs the recipes of a table over several seeds and prints what came out.

    python -m partitions camvid --root ../shared/data/camvid --by domain --out shards/camvid
    python benchmarks/tables.py --table presets --seeds 3          # which preset segments an unseen drive best
    python benchmarks/tables.py --table rules objectives           # also: heads, road, crackforest, privacy

    python -m partitions camvid --root ../shared/data/camvid --sites-of dusk_a,carpark_a,carpark_b \\
        --source day_a,day_b,day_c,day_d --score dusk_b,carpark_c --out shards/camvid-adapt
    python benchmarks/tables.py --table camvid --seeds 3           # driving scenes; all tables: docs/driving.md
    python benchmarks/tables.py --table grid --show                # runs nothing

Each table is a file, benchmarks/tables/NAME.toml. Finished runs are kept, so the command can be stopped and
started again, and tables share their runs. All rows of an adaptation go on from one pretrained model a seed.
The comparison goes to the terminal and, with plots, to OUT/comparison-PART.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from campaign import add_options, check, compare, current, run_all, settings_of, verdict

from common.errors import UserError, report_user_errors
from common.settings.schema import RunConfig
from common.system.atomic import atomic_write_text
from server.report.data import TestSet, read_run
from server.report.render import mean_and_spread

FOLDER = Path(__file__).resolve().parent / "tables"

SITES = 24
"""Sites of the reduced IDDA, the one set whose tables compare equal epochs."""


@dataclass(frozen=True)
class Row:
    """One line: the recipe, what tells it from its neighbours, and the published figures, one per column."""

    recipe: str
    says: str = ""
    published: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Rows that are scored alike.

    columns: scored set by the name of its column; none: the comparison of `server report` says it all.
    start: the recipe whose model the rows with rounds of adaptation go on from, seed by seed.
    site_epochs: what sites a round x epochs x rounds has to be in every row; 0: anything.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    columns: Mapping[str, str]
    start: str = ""
    site_epochs: int = 0

    @property
    def recipes(self) -> list[str]:
        """Return the recipes in the order in which they have to run."""
        first = [self.start] if self.start else []
        return first + [row.recipe for row in self.rows if row.recipe != self.start]


def read_table(path: Path) -> tuple[Part, ...]:
    """Read the parts of one table; a row is a recipe, then what it says, then the published figures."""
    parts = tomllib.loads(path.read_text(encoding="utf-8"))["part"]
    return tuple(
        Part(
            name=part["name"],
            title=part["title"],
            rows=tuple(Row(row[0], "".join(row[1:2]), tuple(row[2:])) for row in part["rows"]),
            columns=part.get("columns", {}),
            start=part.get("start", ""),
            site_epochs=part.get("site-epochs", 0),
        )
        for part in parts
    )


TABLES: Mapping[str, tuple[Part, ...]] = {
    path.stem: read_table(path) for path in sorted(FOLDER.glob("*.toml"))
}


def site_epochs(config: RunConfig) -> int:
    """Return how many epochs all sites take together; pooled images are all sites' images."""
    taking_part = SITES if config.sites.pool else config.sites.per_round or SITES
    return taking_part * config.local.epochs * config.rounds


def check_compute(part: Part) -> None:
    """Raise `UserError` for a row that computes more or less than its table says, or counts steps instead."""
    for row in part.rows if part.site_epochs else ():
        config = settings_of(row.recipe)
        if config.local.steps:
            raise UserError(
                f"Recipe {row.recipe} counts steps (local.steps is {config.local.steps}) but table {part.name} "
                "compares equal epochs; set local.steps to 0."
            )
        if site_epochs(config) != part.site_epochs:
            raise UserError(
                f"Recipe {row.recipe} makes the sites take {site_epochs(config)} epochs together, table {part.name} "
                f"says {part.site_epochs}; change rounds, local.epochs or sites.per-round."
            )


def goes_on(recipe: str) -> bool:
    """Say whether a run adapts: it then starts from a pretrained model."""
    config = settings_of(recipe)
    return config.facts.pretrains and config.rounds > 0


def wanted(part: Part, named: Sequence[str] | None) -> list[str]:
    """Return the recipes that have to run for those ``named`` (all: None), what they go on from first."""
    chosen = [recipe for recipe in part.recipes if named is None or recipe in named]
    if part.start and part.start not in chosen and any(map(goes_on, chosen)):
        chosen.insert(0, part.start)
    return chosen


def run_part(part: Part, recipes: Sequence[str], asked: argparse.Namespace) -> list[str]:
    """Make the missing runs of a part; return the names of those that failed.

    A row whose pretrained model failed fails at once: there is no checkpoint to start from.
    """

    def words(recipe: str, seed: int) -> list[str]:
        found = ["--gpus-per-site", str(asked.gpus_per_site)] if asked.gpus_per_site else []
        if part.start and goes_on(recipe):
            found += ["--set", f"source.checkpoint={asked.out / f'{part.start}-seed{seed}'}"]
        return found

    return run_all(recipes, asked.seeds, asked.out, asked.shards, words)


def cell(runs: Sequence[Mapping[str, TestSet]], name: str) -> str:
    """Return mIoU in % of one set in the last round, mean and spread over seeds.

    Where style clusters have models of their own, their mIoU stands beside it.
    """
    sets = [found[name] for found in runs if name in found]

    def text(key: str) -> str:
        return mean_and_spread([value for found in sets for value in found.last(key, 1)])

    clustered = any(found.clustered for found in sets)
    return text("miou") + (f" (clusters {text('cluster_miou')})" if clustered else "")


def known_cells(row: Row) -> list[str]:
    """Return what a row says before anything is measured: its name, its recipe and the published figures."""
    return [row.says, f"`{row.recipe}`", *row.published]


def table_text(part: Part, seeds: int, out: Path) -> str:
    """Return the table in Markdown: published figures, then those of the runs that are finished."""
    published = part.columns if part.rows[0].published else ()
    head = ["", "recipe", *(f"{name}, published" for name in published), *part.columns, "seeds"]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for row in part.rows:
        asked = settings_of(row.recipe)
        done = [run for seed in range(seeds) if current(run := out / f"{row.recipe}-seed{seed}", asked)]
        runs = [{found.name: found for found in read_run(run).sets} for run in done]
        measured = [cell(runs, name) for name in part.columns.values()]
        lines.append([*known_cells(row), *measured, str(len(runs)) if runs else "–"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def one_folder(parts: Sequence[Part]) -> bool:
    """Say whether all recipes read one shards folder, so that ``--shards`` can name another."""
    return len({settings_of(recipe).simulation.shards for part in parts for recipe in part.recipes}) == 1


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--table", nargs="+", dest="tables", choices=tuple(TABLES), required=True, help="which tables"
    )
    parser.add_argument("--show", action="store_true", help="run nothing, show what is finished")
    parser.add_argument("--gpus-per-site", type=float, default=0.0, metavar="G", help="share of a GPU")
    add_options(parser)
    asked = parser.parse_args(words)
    parts = [part for name in asked.tables for part in TABLES[name]]
    unknown = set(asked.recipes or ()) - {recipe for part in parts for recipe in part.recipes}
    if unknown:
        parser.error(f"no recipe of {', '.join(asked.tables)}: {', '.join(sorted(unknown))}")
    if asked.shards and not one_folder(parts):
        parser.error("--shards names one folder, these tables read several; leave it out")
    return asked


@report_user_errors
def main(words: Sequence[str] | None = None) -> int:
    """Run what is missing of each table, then compare."""
    asked = parse(words)
    parts = [part for name in asked.tables for part in TABLES[name]]
    failed = []
    if not asked.show:
        for part in parts:
            check_compute(part)
            check(wanted(part, asked.recipes), asked.shards)
    for part in parts:
        folder = asked.out / f"comparison-{part.name}"
        if not asked.show:
            failed += run_part(part, wanted(part, asked.recipes), asked)
        if not asked.show or not part.columns:
            compare([row.recipe for row in part.rows], asked.seeds, asked.out, folder)
        if part.columns:
            text = table_text(part, asked.seeds, asked.out)
            print(f"\n{part.title}; mIoU in %, last round\n\n{text}", flush=True)
            if not asked.show:
                atomic_write_text(folder / "table.md", text)
    return verdict(failed)


if __name__ == "__main__":
    sys.exit(main())
