"""A copy of the checkout to which a test adds files, as a contributor would, and its commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

COPIED = ("server", "client", "common", "partitions", "recipes", "pyproject.toml", "tests/support")

SIMULATE = """
import runpy, sys
import server.simulate
from server.loop.run import run
from tests.support.federation import local_grid
server.simulate.run_in_flower = lambda config, gpus: run(local_grid(config.sites.expected), config)
sys.argv = ["server", "simulate", *sys.argv[1:]]
runpy.run_module("server", run_name="__main__")
"""
"""The command `simulate` with sites in its own process: Ray takes ten seconds to start."""


@dataclass(frozen=True)
class Checkout:
    """The packages in a folder of their own; commands run there, in processes of their own."""

    folder: Path

    @classmethod
    def copied(cls, folder: Path) -> Checkout:
        """Copy what a run needs into ``folder``."""
        for name in COPIED:
            source, target = ROOT / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        (folder / "tests" / "conftest.py").write_text("from pathlib import Path\nROOT = Path.cwd()\n")
        return cls(folder)

    def add(self, path: str, text: str) -> None:
        """Write a new file; it must not be there yet."""
        target = self.folder / path
        assert not target.exists(), f"{path} is there already"
        target.write_text(text, encoding="utf-8")

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run ``python`` with these words in the copy."""
        environment = os.environ | {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def output(self, *words: str | Path) -> str:
        """Return what ``python`` with these words prints; fails with its errors where it fails."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def refusal(self, *words: str | Path) -> str:
        """Return the sentence by which ``python`` with these words refuses its input (exit code 2)."""
        done = self.run(*words)
        assert done.returncode == 2, (done.returncode, done.stderr[-3000:])
        return done.stderr

    def simulate(self, *words: str | Path) -> str:
        """Run ``python -m server simulate`` with sites in the same process; returns what it logs."""
        done = self.run("-c", SIMULATE, *words)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr
