"""Does a checkpoint come back as it was, and is anything else refused?"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.checkpoint import (
    Checkpoint,
    arrays_hash,
    checkpoint_path,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from common.data.classes import load_table
from common.errors import UserError
from common.settings.load import load_config


def make(number: int = 3, **changes: Any) -> Checkpoint:
    random = np.random.default_rng(number)
    given: dict[str, Any] = {
        "round": number,
        "head": {"linear.weight": random.normal(size=(4, 6)).astype(np.float32)},
        "centroids": random.normal(size=(5, 4)).astype(np.float32).T[::-1].T,  # not contiguous
        "config": load_config({"preset": "fuss-ref", "seed": 7}),
        "classes": load_table("crackforest"),
        "weights_hash": "ab" * 32,
        "channels": 6,
        "grid": (3, 5),
        "run_key": "run-1",
        "mapping": [0, 1, -1, 0, 1],
        "extra": {
            "memory/m": random.normal(size=3),
            "site/site-0/head/linear.weight": np.zeros(2, np.float32),
        },
        "metrics": {"miou": 0.25, "accuracy": None},
    }
    return Checkpoint(**(given | changes))


def sidecar(path: Path, **changes: Any) -> None:
    """Change what the JSON says, and take its checksum out, as in files of earlier releases."""
    file = path.with_suffix(".json")
    told = json.loads(file.read_text())
    del told["json_sha256"]
    file.write_text(json.dumps(told | changes))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = checkpoint_path(tmp_path, 3)
    save_checkpoint(path, make())
    return path


@pytest.mark.parametrize("how", ["file", "json", "run directory", "checkpoints folder"])
def test_everything_comes_back(saved: Path, how: str) -> None:
    given = {
        "file": saved,
        "json": saved.with_suffix(".json"),
        "run directory": saved.parents[1],
        "checkpoints folder": saved.parent,
    }[how]
    found, expected = load_checkpoint(given), make()
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], array)
        assert found.arrays()[name].dtype == array.dtype
    assert found.arrays().keys() == expected.arrays().keys()
    for field in (
        "round",
        "config",
        "classes",
        "weights_hash",
        "channels",
        "grid",
        "run_key",
        "mapping",
        "metrics",
    ):
        assert getattr(found, field) == getattr(expected, field), field


def test_what_is_not_there_comes_back_as_none(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 1)
    save_checkpoint(path, make(1, classes=None, mapping=None, extra={}))
    found = load_checkpoint(path)
    assert found.classes is None and found.mapping is None and found.extra == {}


def test_the_hash_sees_names_types_shapes_and_values_but_not_the_order() -> None:
    a, b = np.arange(6, dtype=np.float32), np.zeros(2)
    same = arrays_hash({"a": a, "b": b})
    assert same == arrays_hash({"b": b, "a": a}) == arrays_hash({"a": np.asfortranarray(a), "b": b})
    others: list[dict[str, np.ndarray]] = [
        {"a": a, "c": b},
        {"a": a.astype(np.float64), "b": b},
        {"a": a.reshape(2, 3), "b": b},
        {"a": a + 1, "b": b},
    ]
    assert len({same, *(arrays_hash(other) for other in others)}) == 5


def test_the_newest_round_counts_beyond_four_digits(tmp_path: Path) -> None:
    for number in (9999, 10000, 2):
        save_checkpoint(checkpoint_path(tmp_path, number), make(number))
    assert load_checkpoint(tmp_path).round == 10000
    prune_checkpoints(tmp_path, 2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"round-{n}.{kind}" for n in (10000, 9999) for kind in ("json", "safetensors")]


def test_pruning_with_zero_keeps_everything(saved: Path) -> None:
    prune_checkpoints(saved.parents[1], 0)
    assert load_checkpoint(saved).round == 3


def test_a_crash_before_the_json_means_no_checkpoint(saved: Path) -> None:
    checkpoint_path(saved.parents[1], 4).write_bytes(saved.read_bytes())
    assert load_checkpoint(saved.parents[1]).round == 3


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.unlink(), "safetensors does not exist"),
        (lambda path: path.with_suffix(".json").unlink(), "round-0003.json does not exist"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.with_suffix(".json").write_text('{"format"'), "cannot be read"),
        (lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda path: path.with_suffix(".json").write_text("[1, 2]"), "not a checkpoint of this program"),
        (lambda path: path.with_suffix(".json").write_text('{"a": 1}'), "not a checkpoint of this program"),
        (lambda path: sidecar(path, format=2), "not a checkpoint of this program"),
        (lambda path: sidecar(path, arrays_sha256="0"), "does not match its JSON"),
        (
            lambda path: sidecar(path, config={"rounds": -1}),
            "settings that this version does not accept: 'rounds' is -1",
        ),
        (lambda path: sidecar(path, grid=[]), "is not complete"),
        (
            lambda path: path.with_suffix(".json").write_text(
                path.with_suffix(".json").read_text().replace('"grid"', '"gird"')
            ),
            "does not match its JSON",
        ),
    ],
)
def test_damage_is_refused_in_a_sentence(saved: Path, harm: Any, words: str) -> None:
    harm(saved)
    with pytest.raises(UserError, match=words):
        load_checkpoint(saved)


@pytest.mark.parametrize("key", ["round", "weights_sha256", "mapping", "run_key", "metrics", "config"])
def test_a_changed_value_of_the_json_is_noticed(saved: Path, key: str) -> None:
    file = saved.with_suffix(".json")
    told = json.loads(file.read_text())
    other = {"round": 4, "mapping": [0, 0], "metrics": {}, "config": told["config"] | {"seed": 8}}
    file.write_text(json.dumps(told | {key: other.get(key, "another")}))
    with pytest.raises(UserError, match="does not match its JSON"):
        load_checkpoint(saved)
    file.write_text(json.dumps(told))
    load_checkpoint(saved)


def test_one_changed_bit_is_noticed(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    saved.write_bytes(data)
    with pytest.raises(UserError, match="damaged or mixed up"):
        load_checkpoint(saved)


def test_arrays_of_another_round_are_noticed(saved: Path) -> None:
    other = checkpoint_path(saved.parents[1], 4)
    save_checkpoint(other, make(4))
    saved.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match="mixed up"):
        load_checkpoint(saved)


def test_an_empty_folder_holds_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_checkpoint(tmp_path)


def test_a_full_disk_leaves_the_old_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(saved, make(3, metrics={"miou": 0.9}))
    assert load_checkpoint(saved).metrics["miou"] == 0.25
