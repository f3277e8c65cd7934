"""A small shards folder that a test may break in one place, and commands run inside the test's process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.__main__ import client_main
from partitions.__main__ import partitions_main
from server.__main__ import server_main

SIZE = (24, 32)
SITES = 2
IMAGES = 6

SETTINGS: dict[str, Any] = {
    "preset": "fuss-clean",
    "rounds": 1,
    "model.weights": "random",
    "model.height": 33,
    "model.width": 49,
    "model.clusters": 4,
    "model.dim": 8,
    "local.steps": 1,
    "local.batch": 4,
    "local.neighbours": 2,
    "eval.shard": "eval.jsonl",
    "eval.classes": "crackforest",
    "sites.wait-seconds": 1,
    "sites.deadline-seconds": 5,
}

COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "partitions": partitions_main,
    "server": server_main,
    "client": client_main,
}


def save_picture(path: Path, mode: str = "RGB", size: tuple[int, int] = SIZE, seed: int = 0) -> None:
    """Write noise of a mode and a size (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 4), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


def save_label(path: Path, value: int = 1, size: tuple[int, int] = SIZE) -> None:
    """Write a label map of zeros whose first pixel is ``value``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(size, np.uint8)
    values[0, 0] = value
    Image.fromarray(values).save(path)


def truncate(path: Path) -> None:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@dataclass
class Workshop:
    """A folder with shards, an output place, and the words that use them."""

    tmp: Path
    checkpoint: Path
    monkeypatch: pytest.MonkeyPatch
    settings: dict[str, Any] = field(default_factory=lambda: dict(SETTINGS))

    def __post_init__(self) -> None:
        """Write two sites without labels and an evaluation shard with them; there is no partition.json."""
        self.shards.mkdir()
        for site in range(SITES):
            names = [f"images/{site}-{i}.png" for i in range(IMAGES)]
            for i, name in enumerate(names):
                save_picture(self.shards / name, seed=10 * site + i)
            self.write_manifest(f"site-{site}", [{"image": name} for name in names])
        for i in range(2):
            save_picture(self.shards / f"images/e-{i}.png", seed=i)
            save_label(self.shards / f"labels/e-{i}.png", i)
        entries = [{"image": f"images/e-{i}.png", "label": f"labels/e-{i}.png"} for i in range(2)]
        self.write_manifest("eval", entries)

    @property
    def shards(self) -> Path:
        """The shards folder, which is its own data root."""
        return self.tmp / "shards"

    @property
    def out(self) -> Path:
        """Where results go; nothing is there yet."""
        return self.tmp / "out"

    def write_manifest(self, name: str, entries: list[dict[str, str]]) -> None:
        """Replace a manifest."""
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        (self.shards / f"{name}.jsonl").write_text(text)

    def first_entry(self, **changes: str) -> None:
        """Change the first line of site-0."""
        path = self.shards / "site-0.jsonl"
        first, *rest = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps(json.loads(first) | changes), *rest]) + "\n")

    def simulate(self, *words: object, **settings: object) -> list[object]:
        """Return the words of a simulation; ``model__clusters=1`` changes a setting."""
        self.settings |= {key.replace("__", ".").replace("_", "-"): value for key, value in settings.items()}
        given = [f"--set={key}={json.dumps(value)}" for key, value in self.settings.items()]
        base = ["server", "simulate", "--shards", self.shards, "--run-dir", self.out]
        return [*base, *given, *words]

    def check(self, *words: object) -> list[object]:
        """Return the words of a site's check."""
        base = ["client", "check", "--shard", self.shards / "site-0.jsonl", "--set=preset=fuss-clean"]
        given = ["--set=local.batch=4", "--set=local.neighbours=2", "--set=model.weights=random"]
        return [*base, *given, "--set=model.height=33", "--set=model.width=49", *words]

    def everything(self) -> dict[str, int]:
        """Return every file of the folder with its size; complete feature caches do not count."""
        found = {}
        for path in sorted(self.tmp.rglob("*")):
            inside = path.relative_to(self.tmp)
            finished = "cache" in inside.parts and ".partial" not in str(inside)
            if not finished:
                found[str(inside)] = path.stat().st_size if path.is_file() else -1
        return found


def run_command(words: list[object]) -> int:
    """Run ``COMMAND WORDS...`` in this process and return the exit code."""
    name, *rest = map(str, words)
    try:
        return COMMANDS[name](rest) or 0
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
