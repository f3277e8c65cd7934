"""A deployment whose server remembers and whose sites misbehave on command, and how its runs are checked.

Everything waits for signs, not for times, as far as Flower lets it (see `tests.support.faulty_client`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.checkpoint import arrays_hash, checkpoint_path, load_checkpoint
from server.loop.run import run
from tests.conftest import ROOT
from tests.support.deployment import Deployment
from tests.support.faulty_client import write_faulty_project
from tests.support.federation import named_grid, tiny_config
from tests.support.warm import start_warm_site

PATIENCE_SECONDS = 400.0


def until(true: Callable[[], object], what: str, net: Deployment) -> None:
    """Wait until something has happened."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}\n{net.everything()}")
        time.sleep(0.05)


def faulty_federation(folder: Path, scenes: Path, plan: Mapping[str, str]) -> Federation:
    """Prepare a federation in ``folder`` whose sites follow ``plan``; nothing is started."""
    signs, clocks, shards = folder / "signs", folder / "clocks", folder / "shards"
    for place in (signs, clocks):
        place.mkdir()
    shutil.copytree(scenes, shards, ignore=shutil.ignore_patterns("cache"))
    write_faulty_project(ROOT, folder / "project", plan, signs)
    return Federation(
        Deployment(folder / "net", project=folder / "project"), shards, folder / "cache", signs, clocks
    )


@dataclass
class Federation:
    """A deployment whose server remembers and whose sites misbehave on command."""

    net: Deployment
    shards: Path
    cache: Path
    signs: Path
    clocks: Path

    def start_site(self, process: str, site: str, shard: int) -> None:
        """Start a site, or start it again as another process; the clock of each site is its own."""
        path = f"{ROOT / 'tests/support/clock'}{os.pathsep}{ROOT}"
        extra = {"PYTHONPATH": path, "TEST_CLOCK": str(self.clocks / site)}
        manifest = self.shards / f"site-{shard}.jsonl"
        cache = self.cache / process.removesuffix("-again")
        start_warm_site(self.net, process, site, manifest, cache, extra=extra)

    def superlink(self) -> None:
        """Start the SuperLink, or start it again."""
        self.net.lasting_superlink(self.server_clock())

    def executor(self) -> None:
        """Start what runs the server application."""
        self.net.executor(self.server_clock())

    def server_clock(self) -> dict[str, str]:
        """Return what makes the server's processes look at the server's clock."""
        path = f"{ROOT / 'tests/support/clock'}"
        return {"PYTHONPATH": path, "TEST_CLOCK": str(self.clocks / "server")}

    def set_clock(self, whose: str, seconds: float) -> None:
        """Set the clock of a site, or of the server's machine."""
        (self.clocks / whose).write_text(str(seconds))

    def reached(self, place: str) -> None:
        """Wait until a site waits in a round."""
        until((self.signs / f"reached-{place}").exists, f"nobody reached {place}", self.net)

    def arrived(self, site: str, number: int) -> None:
        """Wait until the server application has all of a site's answer of a round.

        A SuperLink forgets an answer when it hands it out, and its parts when the server says that they came: who
        kills it in between loses the answer, though the site has sent it successfully.
        """
        log = max(self.net.folder.glob(f"{site}*.log"), key=lambda path: path.stat().st_mtime)

        def done() -> bool:
            _, round_, after = log.read_text(errors="replace").rpartition(f"ROUND {number}]")
            answer = re.search(r"Sending: train message \(ID: (\w+)\)", after)
            if not round_ or answer is None or "Sent successfully" not in after:
                return False
            return not self._ask("SELECT 1 FROM objects WHERE object_id = ?", answer[1])

        until(done, f"{site}'s answer of round {number} has not arrived", self.net)

    def believed(self, sites: int, seconds: float) -> None:
        """Wait until the server will believe so many sites to be alive for so long without another sign of life.

        They give one every 21 to 27 s and are believed for 60, so only after trouble is there something to wait for.
        """
        asked = "SELECT node_id FROM node WHERE online_until > ?"
        until(
            lambda: len(self._ask(asked, time.time() + seconds)) >= sites,
            "sites do not show up again",
            self.net,
        )

    def _ask(self, words: str, *values: object) -> list[tuple[object, ...]]:
        """Ask the SuperLink's database."""
        path = self.net.folder / "superlink.db"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as database:
            return database.execute(words, values).fetchall()

    def go(self, place: str) -> None:
        """Let it go on."""
        (self.signs / f"go-{place}").touch()


def read_lines(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rounds that are acknowledged so far; half a line is none."""
    path = run_dir / "metrics.jsonl"
    texts = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(text) for text in texts if text.endswith("}\n")]


def check_acknowledged(run_dir: Path, rounds: int) -> None:
    """Check that every round is there once, and its checkpoint is the one that was acknowledged."""
    found = read_lines(run_dir)
    assert [line["round"] for line in found] == list(range(1, rounds + 1))
    for line in found:
        saved = load_checkpoint(checkpoint_path(run_dir, line["round"]))
        assert arrays_hash(saved.arrays()) == line["checkpoint_sha256"]
        assert all(np.isfinite(array).all() for array in saved.head.values())


def unbroken(names: Sequence[str], shards: Path, cache: Path, run_dir: Path, settings: dict[str, Any]) -> str:
    """Run the same federation in this process, with nothing going wrong; return the last model's hash."""
    config = tiny_config(shards, run_dir, len(names), **settings)
    return str(read_lines(run(named_grid(names, shards, cache), config))[-1]["checkpoint_sha256"])
