"""A copy of the checkout to which a test adds files, as a contributor would, and its commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

COPIED = ("server", "client", "common", "partitions", "recipes", "pyproject.toml", "tests/support")

COMMANDS = """
import contextlib, io, json, sys, traceback
import server.simulate
from server.loop.run import run
from tests.support.federation import local_grid
from tests.support.workshop import run_command
server.simulate.run_in_flower = lambda config, gpus: run(local_grid(config.sites.expected), config)
done = []
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run_command(words)
        except Exception:
            code = 1
            traceback.print_exc()
    done.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
json.dump(done, open("done.json", "w"))
"""
"""Commands one after the other in one process, which takes seconds to start; sites run in it as well."""


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    code: int
    out: str
    err: str

    def printed(self) -> str:
        """Return what the command printed; fails with its errors where it fails."""
        assert self.code == 0, self.err[-3000:]
        return self.out

    def refusal(self) -> str:
        """Return the sentence by which the command refused its input (exit code 2)."""
        assert self.code == 2, (self.code, self.err[-3000:])
        return self.err


@dataclass(frozen=True)
class Checkout:
    """The packages in a folder of their own; commands run there, in a process of their own."""

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

    def run(self, *commands: Sequence[str | Path]) -> list[Done]:
        """Run commands (``server list rules``) in the copy, one after the other, in one process."""
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"},
            input=json.dumps([[str(word) for word in words] for words in commands]),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads((self.folder / "done.json").read_text())
        return [Done(**each) for each in found]
