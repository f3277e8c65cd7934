"""Recomputes all golden figures, rewrites those that left their tolerance, and says which.

Run as ``python -m tests.golden`` (``make golden``). ``GOLDEN_HASHES=FILE`` also writes the hashes of all results
to a file, to compare two versions of the code bit by bit on one machine.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from tests.golden.figures import FOLDER, Golden, update
from tests.golden.merges import golden_merges
from tests.golden.objectives import golden_objectives
from tests.golden.runs import SETTINGS, golden_run, workplace

SHOWN = 20
"""Figures of a file that are named one by one."""


def compute() -> list[Golden]:
    """Compute everything that the golden files pin."""
    found = [*golden_merges(), *golden_objectives()]
    with tempfile.TemporaryDirectory() as folder, workplace(Path(folder)):
        found += [golden_run(Path(folder), name) for name in SETTINGS]
    return found


def main() -> int:
    """Update the files; returns the exit code."""
    every = compute()
    hashes = {f"{golden.name}/{key}": value for golden in every for key, value in golden.hashes.items()}
    for name, value in hashes.items():
        print(f"{value[:16]}  {name}")
    if target := os.environ.get("GOLDEN_HASHES"):
        Path(target).write_text(json.dumps(hashes, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for golden in every:
        changes = update(golden)
        print(f"{golden.path.relative_to(FOLDER.parent.parent)}: {len(changes)} figures moved")
        for path, (old, new) in list(changes.items())[:SHOWN]:
            print(f"  {path}: {old} -> {new}")
        if len(changes) > SHOWN:
            print(f"  and {len(changes) - SHOWN} more")
    return 0


if __name__ == "__main__":
    sys.exit(main())
