"""Does every changed byte of a run's files give one sentence or the same result, never a traceback or another one?

The cases: bytes flipped, lines and ends cut off, values of JSON swapped; every second one with its checksums made
right again, as who edits a file on purpose would. Then a valid other value is what the file says; all else is refused.
"""

from __future__ import annotations

import json
import random
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.checkpoint import _described_hash, arrays_hash, checkpoint_path, load_checkpoint
from common.data.checksums import with_checksums
from common.data.manifest import read_shard, read_sites
from common.errors import UserError
from common.evaluation.score import sealed_line
from common.features import cache as caches
from common.features.cache import open_features
from common.models.input_size import fitted_to
from common.settings.schema import RunConfig
from server.loop.run import run
from server.report.data import read_run
from server.run_dir import read_metrics
from tests.support.federation import local_grid, tiny_config

VALUES = (None, -1, 0, 7, 2**63, 1e308, -0.5, "", "x", "0" * 64, [], [1], {}, {"a": 1}, True, float("nan"))


@dataclass(frozen=True)
class Made:
    """The files of one tiny run."""

    root: Path
    config: RunConfig

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    @property
    def run_dir(self) -> Path:
        return self.root / "run"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Made:
    root = tmp_path_factory.mktemp("files")
    shutil.copytree(scenes, root / "shards")
    config = tiny_config(root / "shards", root / "run", 4, rounds=3, simulation__cache=str(root / "cache"))
    run(local_grid(4), config)
    for folder in (root / "shards",):
        told = json.loads((folder / "partition.json").read_text())
        told.pop("checksums", None)
        (folder / "partition.json").write_text(json.dumps(with_checksums(told, folder)))
    return Made(root, config)


def flipped(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 3))):
        changed[draw.randrange(len(changed))] ^= draw.randrange(1, 256)
    return bytes(changed)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        found += places(inner, (*path, key))
    return found


def swapped(told: Any, draw: random.Random) -> Any:
    """Put another value at one place of a JSON value."""
    *way, last = draw.choice(places(told))
    inner = told
    for key in way:
        inner = inner[key]
    if draw.random() < 0.2 and isinstance(inner, dict):
        del inner[last]
    else:
        inner[last] = draw.choice(VALUES)
    return told


def mutated(data: bytes, draw: random.Random) -> bytes:
    kind = draw.randrange(4)
    if kind == 0:
        return data[: draw.randrange(len(data))]
    if kind == 1:
        at = draw.randrange(len(data))
        return data[:at] + data[at + draw.randrange(1, 20) :]
    return flipped(data, draw)


def outcome(use: Callable[[], Any]) -> Any:
    """Return what came of it, or the sentence; anything else than a `UserError` climbs up as the failure it is."""
    try:
        return use()
    except UserError as error:
        assert "\n" not in str(error).strip()
        return None


def checkpoint_outcome(file: Path) -> Any:
    found = load_checkpoint(file)
    return (arrays_hash(found.arrays()), json.dumps([found.round, found.mapping, found.run_key, found.channels,
            found.grid, found.weights_hash, found.metrics, found.config.to_json(),
            found.classes and found.classes.to_json()], sort_keys=True))  # fmt: skip


def check_checkpoint(made: Made, draw: random.Random) -> None:
    file = checkpoint_path(made.run_dir, 2)
    sidecar = file.with_suffix(".json")
    before = {path: path.read_bytes() for path in (file, sidecar)}
    expected = checkpoint_outcome(file)
    try:
        right_again = draw.random() < 0.5
        if right_again:
            told = swapped(json.loads(before[sidecar]), draw)
            if isinstance(told, dict):
                told["json_sha256"] = _described_hash(told)
            sidecar.write_text(json.dumps(told))
        else:
            path = draw.choice((file, sidecar))
            path.write_bytes(mutated(before[path], draw))
        found = outcome(lambda: checkpoint_outcome(file))
        assert right_again or found in (None, expected)
    finally:
        for path, data in before.items():
            path.write_bytes(data)


def check_metrics(made: Made, draw: random.Random) -> None:
    file = made.run_dir / "metrics.jsonl"
    before, expected = file.read_bytes(), read_metrics(made.run_dir)
    try:
        right_again = draw.random() < 0.5
        if right_again:
            lines = [json.loads(line) for line in before.splitlines()]
            number = draw.randrange(len(lines))
            lines[number].pop("crc32")
            lines[number] = swapped(lines[number], draw)
            file.write_text("".join(map(sealed_line, lines)))
        else:
            file.write_bytes(mutated(before, draw))
        found = outcome(lambda: read_metrics(made.run_dir))
        outcome(lambda: read_run(made.run_dir))
        # a file that is cut off lacks its last rounds, which then were never acknowledged
        assert right_again or found is None or found == expected[: len(found)]
    finally:
        file.write_bytes(before)


def check_manifests(made: Made, draw: random.Random) -> None:
    def use() -> Any:
        return [(shard.entries, shard.classes, shard.root) for shard in read_sites(made.shards)]

    files = [made.shards / "partition.json", *sorted(made.shards.glob("site-*.jsonl"))]
    before, expected = {file: file.read_bytes() for file in files}, use()
    try:
        right_again = draw.random() < 0.5
        if right_again:
            told = json.loads(before[files[0]])
            told.pop("checksums")
            told = swapped(told, draw)
            files[0].write_text(json.dumps(with_checksums(told, made.shards)))
        else:
            file = draw.choice(files)
            file.write_bytes(mutated(before[file], draw))
        found = outcome(use)
        assert right_again or found in (None, expected), (file.name, file.read_bytes())
    finally:
        for file, data in before.items():
            file.write_bytes(data)


class Anew(Exception):
    """The cache is made anew."""


def check_cache(made: Made, draw: random.Random) -> None:
    shard = read_shard(made.shards / "site-0.jsonl")
    config = fitted_to(made.config, shard)

    def use() -> Any:
        features = open_features(shard, config.model, config.cache, made.root / "cache", "cpu", config.seed)
        every = list(range(len(features)))
        return (features.batch(every).numpy().tobytes(), features.colours(every).numpy().tobytes(),
                features.neighbours(2).tobytes(), features.grid, features.weights_hash)  # fmt: skip

    def anew(*_: Any) -> None:
        raise Anew

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caches, "_build", anew)
        expected = use()
        (folder,) = (made.root / "cache").glob("site_0-*") or (made.root / "cache").glob("site-0*")
        files = sorted(folder.iterdir())
        before = {file: file.read_bytes() for file in files}
        try:
            right_again = draw.random() < 0.5
            file = draw.choice(files)
            if right_again:
                header = folder / "header.json"
                told = json.loads(before[header])
                told["sums"].pop("header")
                told = swapped(told, draw)
                header.write_text(json.dumps(told))
                if isinstance(told.get("sums"), dict):
                    made_right = caches.store.Header.model_construct(**told)
                    told["sums"]["header"] = outcome_of_sum(made_right)
                header.write_text(json.dumps(told))
            else:
                file.write_bytes(
                    flipped(before[file], draw) if draw.random() < 0.7 else mutated(before[file], draw)
                )
            try:
                found = outcome(use)
            except Anew:
                found = None
            assert right_again or found in (None, expected)
        finally:
            for file, data in before.items():
                file.write_bytes(data)


def outcome_of_sum(header: Any) -> int:
    try:
        return int(header.checksum())
    except Exception:  # what cannot be written has no sum either
        return zlib.crc32(b"")


KINDS = {
    "checkpoint": check_checkpoint,
    "cache": check_cache,
    "metrics": check_metrics,
    "manifest": check_manifests,
}
QUIET = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=25, deadline=None, suppress_health_check=QUIET, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32))
def test_a_changed_file_is_refused_or_changes_nothing(made: Made, kind: str, seed: int) -> None:
    KINDS[kind](made, random.Random(seed))


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=500, deadline=None, suppress_health_check=QUIET, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32))
def test_two_thousand_changed_files(made: Made, kind: str, seed: int) -> None:
    KINDS[kind](made, random.Random(seed))


@pytest.mark.slow
def test_every_change_of_a_cache_of_the_same_size_is_noticed(made: Made) -> None:
    (folder,) = (made.root / "cache").glob("site*0-*")
    tokens = np.fromfile(folder / "tokens.bin", np.uint8)
    assert len(tokens) > 240
    shard = read_shard(made.shards / "site-0.jsonl")
    config = fitted_to(made.config, shard)
    header, draw = (folder / "header.json").read_bytes(), random.Random(0)
    for _ in range(240):
        (folder / "tokens.bin").write_bytes(flipped(tokens.tobytes(), draw))
        features = open_features(shard, config.model, config.cache, made.root / "cache", "cpu", config.seed)
        with pytest.raises(UserError, match="has changed since it was written"):
            features.batch(list(range(len(features))))
        assert not (folder / "header.json").exists()  # it is made anew the next time
        (folder / "header.json").write_bytes(header)
    (folder / "tokens.bin").write_bytes(tokens.tobytes())
