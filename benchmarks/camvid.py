"""Which preset segments an unseen drive best? Runs the CamVid recipes over several seeds and compares them.

    python -m partitions camvid --root ../shared/data/camvid --by domain --out shards/camvid
    python benchmarks/camvid.py --seeds 3

Finished runs are kept: the command can be stopped and started again. The table goes to the terminal and,
with plots, to OUT/comparison.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
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


def finished(run_dir: Path, recipe: Path) -> bool:
    """Say whether a run directory holds the last round of a recipe."""
    metrics, config = run_dir / "metrics.jsonl", run_dir / "config.json"
    if not metrics.is_file() or not config.is_file():
        return False
    lines = metrics.read_text(encoding="utf-8").splitlines()
    return bool(lines) and json.loads(lines[-1])["round"] == json.loads(config.read_text())["rounds"]


def main() -> None:
    """Run what is missing, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each recipe (default 3)")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), metavar="NAME", help="recipes/NAME.toml")
    parser.add_argument("--shards", type=Path, help="shards folder, if not the recipes' own")
    parser.add_argument("--out", type=Path, default=ROOT / "runs", help="where the runs go (default runs/)")
    arguments = parser.parse_args()
    runs = []
    for seed in range(arguments.seeds):
        for name in arguments.recipes:
            recipe = ROOT / "recipes" / f"{name}.toml"
            run_dir = arguments.out / f"{name}-seed{seed}"
            runs.append(run_dir)
            if finished(run_dir, recipe):
                continue
            command = [sys.executable, "-m", "server", "simulate", "--recipe", str(recipe)]
            command += ["--run-dir", str(run_dir), "--set", f"seed={seed}"]
            command += ["--shards", str(arguments.shards)] if arguments.shards else []
            print(f"== {name}, seed {seed}", flush=True)
            subprocess.run(command, cwd=ROOT, check=True)
    order = {name: index for index, name in enumerate(arguments.recipes)}
    runs.sort(key=lambda run: (order[run.name.rpartition("-seed")[0]], run.name))
    report = [sys.executable, "-m", "server", "report", *map(str, runs), "--out", str(arguments.out / "comparison")]
    subprocess.run(report, cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
