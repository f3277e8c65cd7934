"""Which preset segments an unseen drive best? Runs the CamVid recipes over several seeds and compares them.

    python -m partitions camvid --root ../shared/data/camvid --by domain --out shards/camvid
    python benchmarks/camvid.py --seeds 3

Finished runs are kept: the command can be stopped and started again. The table goes to the terminal and,
with plots, to OUT/comparison.
"""

from __future__ import annotations

import argparse
import sys

from campaign import add_options, check, compare, run_all, verdict

from common.errors import report_user_errors

RECIPES = (
    "camvid-local-only",
    "camvid-fuss-ref",
    "camvid-default",
    "camvid-centralised",
    "camvid-vit-local-only",
    "camvid-vit-fuss-ref",
    "camvid-vit-default",
    "camvid-vit-centralised",
)


@report_user_errors
def main() -> int:
    """Run what is missing, then compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, RECIPES)
    asked = parser.parse_args()
    check(asked.recipes, asked.shards)
    failed = run_all(asked.recipes, asked.seeds, asked.out, asked.shards)
    compare(asked.recipes, asked.seeds, asked.out, asked.out / "comparison")
    return verdict(failed)


if __name__ == "__main__":
    sys.exit(main())
