"""How do many runs follow one another, so that the command may be stopped and started again?

Every run has a folder of its own, OUT/NAME-seedSEED. One that holds its last round is kept, one that was
stopped goes on from its newest checkpoint, the rest start. A run of other settings than the recipe has by
now is renamed (NAME-seedSEED.old-1, ...), not counted and not lost. A run that fails leaves the others alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UserError
from common.settings.load import from_record, load_config, read_recipe
from common.settings.schema import RunConfig
from server.run_dir import sole_writer

ROOT = Path(__file__).resolve().parents[1]

Words = Callable[[str, int], Sequence[str]]
"""Further words for the command of a run, given recipe and seed."""

_FREE = {"name", "seed", "run-dir", "resume", "sites.expected", "source.checkpoint", "checkpoint.keep"}
_FREE |= {"simulation.shards", "simulation.data-root", "simulation.cache", "simulation.threads"}
_FREE |= {"source.data-root", "source.styles"}
_FILES = {"model.weights", "network.weights"}
"""Settings that say where something lies, which the same run may say otherwise; of weights the file names count."""


def recipe_path(name: str) -> Path:
    """Return the file of a recipe."""
    return ROOT / "recipes" / f"{name}.toml"


def settings_of(recipe: str) -> RunConfig:
    """Return the settings of a recipe."""
    return load_config(read_recipe(recipe_path(recipe)))


def add_options(parser: argparse.ArgumentParser, recipes: Sequence[str] | None = None) -> None:
    """Add what all campaigns can be asked; ``recipes`` are those that run if none is named."""
    parser.add_argument("--seeds", type=int, default=3, help="runs of each recipe (default 3)")
    parser.add_argument("--recipes", nargs="+", default=recipes, metavar="NAME", help="recipes/NAME.toml")
    parser.add_argument("--shards", type=absolute, help="shards folder, if not the recipes' own")
    parser.add_argument(
        "--out", type=absolute, default=ROOT / "runs", help="where the runs go (default runs/)"
    )


def absolute(text: str) -> Path:
    """Read a path as the caller means it: the runs are started in another folder."""
    return Path(text).resolve()


def check(recipes: Sequence[str], shards: Path | None) -> None:
    """Raise `UserError` for a recipe or a shards folder that is not there: now, not after an hour of runs."""
    for name in recipes:
        config = settings_of(name)  # a recipe that is broken is named, whatever the shards
        folder = shards or ROOT / config.simulation.shards
        if not folder.is_dir():
            raise UserError(
                f"Recipe {name} needs the shards folder {folder}; make it with `python -m partitions` as "
                "docs/recipes.md says."
            )


def finished(run_dir: Path) -> bool:
    """Say whether a run directory holds the last round of its run."""
    metrics, config = run_dir / "metrics.jsonl", run_dir / "config.json"
    if not metrics.is_file() or not config.is_file():
        return False
    lines = metrics.read_text(encoding="utf-8").splitlines()
    if not lines:
        return False
    try:
        last = json.loads(lines[-1])["round"]
    except ValueError:  # the line that a crash cut off
        return False
    return bool(last == json.loads(config.read_text(encoding="utf-8"))["rounds"])


def differing(run_dir: Path, wanted: RunConfig) -> list[str]:
    """Return the settings in which a run directory's run differs from the wanted one, places of files apart.

    None where there is no run yet. Settings that this version refuses differ as a whole.
    """
    file = run_dir / "config.json"
    if not file.is_file():
        return []
    try:
        found = _comparable(from_record(json.loads(file.read_text(encoding="utf-8"))))
    except ValueError:
        return ["config.json"]
    asked = _comparable(wanted)
    return [key for key in asked if found[key] != asked[key]]


def _comparable(config: RunConfig) -> dict[str, object]:
    flat: dict[str, object] = {key: value for key, value in config.to_flat().items() if key not in _FREE}
    for key in _FILES:
        flat[key] = [Path(part.strip()).name for part in str(flat[key]).split(",")]
    return flat


def current(run_dir: Path, wanted: RunConfig) -> bool:
    """Say whether a run directory holds the whole of the wanted run, and not that of an older recipe."""
    return finished(run_dir) and not differing(run_dir, wanted)


def set_aside(run_dir: Path, wanted: RunConfig) -> None:
    """Rename the folder of a run that has other settings than the wanted one; say so.

    Raises `UserError` where a process still writes to it.
    """
    if not differing(run_dir, wanted):
        return
    with sole_writer(run_dir):
        keys = differing(run_dir, wanted)  # by now another campaign may have done it
        if not keys:
            return
        number = 1
        while (old := run_dir.with_name(f"{run_dir.name}.old-{number}")).exists():
            number += 1
        run_dir.rename(old)
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    print(f"== {run_dir.name}: {', '.join(keys[:3])}{more} changed; the old run is now {old}", flush=True)


def simulate_command(
    name: str, seed: int, run_dir: Path, shards: Path | None, words: Sequence[str] = ()
) -> list[str]:
    """Return the command that starts a run, or lets it go on; ``words`` are added as they are."""
    command = [sys.executable, "-m", "server", "simulate", "--recipe", str(recipe_path(name))]
    command += ["--run-dir", str(run_dir), "--set", f"seed={seed}"]
    command += ["--shards", str(shards)] if shards else []
    command += words
    if any((run_dir / "checkpoints").glob("round-*.json")):
        command += ["--resume", str(run_dir)]
    return command


def run_all(
    recipes: Sequence[str],
    seeds: int,
    out: Path,
    shards: Path | None = None,
    words: Words = lambda name, seed: (),
) -> list[str]:
    """Make the runs that are missing, seed by seed; return the names of those that failed."""
    failed = []
    for seed in range(seeds):
        for name in recipes:
            run_dir = out / f"{name}-seed{seed}"
            try:
                set_aside(run_dir, settings_of(name))
            except UserError as error:
                print(error, file=sys.stderr)
                failed.append(run_dir.name)
                continue
            if finished(run_dir):
                continue
            print(f"== {name}, seed {seed}", flush=True)
            command = simulate_command(name, seed, run_dir, shards, words(name, seed))
            done = subprocess.run(command, cwd=ROOT, check=False)
            if done.returncode:
                failed.append(run_dir.name)
    return failed


def compare(recipes: Sequence[str], seeds: int, out: Path, folder: Path) -> None:
    """Print the comparison of all finished runs of the recipes as they are; write it, with plots, to ``folder``."""
    runs = [(out / f"{name}-seed{seed}", settings_of(name)) for name in recipes for seed in range(seeds)]
    done = [str(run) for run, wanted in runs if current(run, wanted)]
    if len(done) < 2:
        print("Fewer than two runs are finished; there is nothing to compare.")
        return
    report = [sys.executable, "-m", "server", "report", *done, "--out", str(folder)]
    subprocess.run(report, cwd=ROOT, check=True)


def verdict(failed: Sequence[str]) -> int:
    """Name what failed; return the exit code."""
    if failed:
        print(f"failed, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
