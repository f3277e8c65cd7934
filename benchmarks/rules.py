"""Which merge rule, which objective is best? Runs the recipes of one question over several seeds.

    python -m partitions camvid --root ../shared/data/camvid --by domain --out shards/camvid
    python -m partitions camvid --root ../shared/data/camvid --classes camvid-road --out shards/camvid-road
    python -m partitions crackforest --root ../shared/data/crackforest --out shards/crackforest
    python benchmarks/rules.py --seeds 3                       # rules and objectives
    python benchmarks/rules.py --seeds 3 --set road crackforest

Within a set all recipes have the same features and, where they take steps at all, the same local steps.
Finished runs are kept: the command can be stopped and started again. A table per set goes to the terminal
and, with plots, to OUT/comparison-SET.
"""

from __future__ import annotations

import argparse
import sys

from campaign import add_options, check, compare, run_all, verdict

from common.errors import report_user_errors

SETS = {
    # how centroids become one set; heads, objective and steps as in camvid-fuss-ref
    "rules": (
        "camvid-local-only",
        "camvid-rule-head-only",
        "camvid-rule-centroids-only",
        "camvid-rule-mean",
        "camvid-rule-fedcc-kmeans",
        "camvid-rule-fedcc-kmeans-counted",
        "camvid-fuss-ref",
        "camvid-rule-fedcc-maximin-counted",
        "camvid-rule-fedcc-maximin-polish",
        "camvid-rule-keep-least-moved",
        "camvid-rule-matched",
        "camvid-rule-matched-median",
        "camvid-rule-matched-geometric",
        "camvid-rule-lloyd",
        "camvid-rule-lloyd-momentum",
        "camvid-rule-lloyd-polish",
        "camvid-default",
    ),
    # what the head learns from; centroids are found exactly for all of them
    "objectives": (
        "camvid-objective-correspondence",
        "camvid-objective-auto-shift",
        "camvid-objective-reconstruction",
        "camvid-objective-crf",
        "camvid-objective-smoothness",
        "camvid-objective-modularity",
        "camvid-objective-alignment",
        "camvid-default",
    ),
    # how heads become one; centroids are matched for all of them
    "heads": (
        "camvid-rule-matched",
        "camvid-head-uniform",
        "camvid-head-fedprox",
        "camvid-head-moon",
        "camvid-head-fedavgm",
        "camvid-head-fedadam",
        "camvid-head-fedyogi",
        "camvid-head-median",
        "camvid-head-trimmed-mean",
        "camvid-head-krum",
        "camvid-head-multi-krum",
    ),
    # road against all else
    "road": (
        "camvid-road-local-only",
        "camvid-road-fuss-ref",
        "camvid-road-correspondence",
        "camvid-road-smoothness",
        "camvid-road-default",
        "camvid-road-centralised",
    ),
    # cracks against road surface: a hard case; `python benchmarks/darkness.py` gives the baseline
    "crackforest": (
        "crackforest-local-only",
        "crackforest-rule-mean",
        "crackforest-rule-fedcc-kmeans",
        "crackforest-fuss-ref",
        "crackforest-rule-matched",
        "crackforest-rule-lloyd",
        "crackforest-correspondence",
        "crackforest-objective-auto-shift",
        "crackforest-objective-reconstruction",
        "crackforest-objective-crf",
        "crackforest-smoothness",
        "crackforest-objective-modularity",
        "crackforest-objective-alignment",
        "crackforest-default",
        "crackforest-centralised",
    ),
    # what noise costs; epsilon at delta 1e-5 in docs/privacy.md
    "privacy": (
        "camvid-default",
        "camvid-noise-0",
        "camvid-noise-025",
        "camvid-noise-05",
        "camvid-noise-1",
        "camvid-noise-2",
    ),
}


@report_user_errors
def main() -> int:
    """Run what is missing of each set, then compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--set",
        nargs="+",
        dest="sets",
        choices=tuple(SETS),
        default=["rules", "objectives"],
        help="which questions (default: rules objectives)",
    )
    add_options(parser)
    asked = parser.parse_args()
    sets = {
        name: [r for r in SETS[name] if asked.recipes is None or r in asked.recipes] for name in asked.sets
    }
    unknown = set(asked.recipes or ()) - {recipe for recipes in sets.values() for recipe in recipes}
    if unknown:
        parser.error(f"no recipe of {', '.join(asked.sets)}: {', '.join(sorted(unknown))}")
    for recipes in sets.values():
        check(recipes, asked.shards)
    failed = []
    for name, recipes in sets.items():
        failed += run_all(recipes, asked.seeds, asked.out, asked.shards)
        compare(recipes, asked.seeds, asked.out, asked.out / f"comparison-{name}")
    return verdict(failed)


if __name__ == "__main__":
    sys.exit(main())
