"""Snapshots of a pretraining on disk, from which one that was stopped goes on.

``checkpoints/pretraining.safetensors`` holds every array that the next step depends on, and in its header the step,
the settings, and hashes of what it was made from. One file, written in one step, the newest only; the first
checkpoint of the run takes its place.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.data.manifest import Shard
from common.errors import UserError
from common.settings.schema import RunConfig
from common.settings.section import Scalar
from common.styles.bank import BANK_FILE
from common.system.atomic import atomic_path, atomic_write_bytes
from common.wire import Arrays

_KEY = "pretraining"  # of the header; safetensors takes texts only, so it holds JSON
_FILE = "pretraining.safetensors"

_SECTIONS = ("network.", "transforms.", "sgd.", "reduction.", "source.", "style.")

# Settings of these sections that say nothing about pretraining.
_ELSEWHERE = frozenset(
    {
        "network.batchnorm",
        "network.freeze",
        "network.site-statistics",
        "network.final-statistics",
        "transforms.eval-height",
        "transforms.eval-width",
        "sgd.lr",  # of the rounds; pretraining has source.lr
    }
)

# Settings that name files, which may lie elsewhere by now: what is in them counts, by its hash.
_PATHS = frozenset({"network.weights", "source.shard", "source.data-root", "source.styles"})

# What the inputs of a pretraining are called in a sentence.
IMAGES = "images in source.shard"
WEIGHTS = "weights to start from"
STYLES = "styles"


@dataclass(frozen=True)
class Snapshot:
    """A training after some of its steps: all that the next one depends on.

    step: steps taken. loss: their losses, summed. skipped: those of them that overflowed. device: the kind that they
    were taken on, "cpu" or "cuda". scaler: state of the loss scale; empty without mixed precision. arrays: by name,
    ``network/KEY``, ``optimizer/PARAMETER/KEY``, ``dropout/MODULE`` (see `server.adaptation.pretrain_steps`).
    """

    step: int
    loss: float
    skipped: int
    device: str
    scaler: dict[str, Any]
    arrays: Arrays


@dataclass(frozen=True)
class Origin:
    """What a pretraining follows from: settings by key, and hashes of inputs (`IMAGES`, `WEIGHTS`, `STYLES`)."""

    settings: Mapping[str, Scalar]
    inputs: Mapping[str, str]

    @classmethod
    def of(cls, config: RunConfig, inputs: Mapping[str, str]) -> Origin:
        """Take the settings that pretraining depends on."""
        chosen = {
            key: value
            for key, value in config.to_flat().items()
            if key == "seed" or (key.startswith(_SECTIONS) and key not in _ELSEWHERE | _PATHS)
        }
        return cls(chosen, inputs)


class _Header(BaseModel):
    """What the file says beside its arrays: a snapshot's progress, and where it came from."""

    format: Literal[1] = 1
    step: int
    loss: float
    skipped: int
    device: str
    scaler: dict[str, Any]
    settings: dict[str, Any]
    inputs: dict[str, str]


def images_hash(shard: Shard) -> str:
    """Return the SHA-256 (hex) over which images and labels a shard names, in which order, and what labels mean."""
    digest = hashlib.sha256()
    for entry in shard.entries:
        digest.update(entry.to_line().encode() + b"\n")
    classes = None if shard.classes is None else shard.classes.to_json()
    digest.update(json.dumps([classes, shard.repair_sizes], sort_keys=True).encode())
    return digest.hexdigest()


def state_file(run_dir: Path) -> Path:
    """Return where a run directory holds a pretraining that is not finished."""
    return run_dir / "checkpoints" / _FILE


def stopped_pretraining(config: RunConfig) -> Path | None:
    """Return the state that ``config.resume`` names: the file, or a run directory with one and no round yet."""
    if not (config.facts.pretrains and config.resume):
        return None
    given = Path(config.resume)
    file = state_file(given) if given.is_dir() else given
    if file.name != _FILE or not file.is_file() or any(file.parent.glob("round-*.json")):
        return None
    return file


def save_snapshot(file: Path, snapshot: Snapshot, origin: Origin) -> None:
    """Replace ``file`` in one step; raises `UserError` where the disk is full."""
    progress = {key: getattr(snapshot, key) for key in ("step", "loss", "skipped", "device", "scaler")}
    header = _Header(**progress, settings=dict(origin.settings), inputs=dict(origin.inputs))
    atomic_write_bytes(file, save(snapshot.arrays, metadata={_KEY: json.dumps(header.model_dump())}))


def load_snapshot(file: Path, origin: Origin) -> Snapshot:
    """Read what `save_snapshot` wrote; raises `UserError` as `check_origin` does."""
    check_origin(file, origin)
    header = _read_header(file)
    with safe_open(file, framework="np") as opened:
        arrays: Arrays = {name: np.array(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
    return Snapshot(header.step, header.loss, header.skipped, header.device, header.scaler, arrays)


def check_origin(file: Path, origin: Origin) -> None:
    """Raise `UserError` where ``file`` is damaged, or was made with other settings or inputs.

    Inputs that ``origin`` does not name are not asked for.
    """
    header = _read_header(file)
    advice = "go on with what it was made with, or pretrain anew in another run-dir, without resume"
    for key, value in header.settings.items():
        if key in origin.settings and origin.settings[key] != value:
            raise UserError(
                f"The stopped pretraining {file} was made with {key} = {value!r}, this run has "
                f"{origin.settings[key]!r}; {advice}."
            )
    for name, digest in origin.inputs.items():
        if header.inputs.get(name) != digest:
            raise UserError(
                f"The stopped pretraining {file} was made with other {name} than this run has; {advice}."
            )


def migrate_pretraining(file: Path, run_dir: Path) -> None:
    """Take a stopped pretraining, and the styles that it was made in, into the directory in which it goes on."""
    styles = file.parents[1] / BANK_FILE
    target = run_dir / BANK_FILE
    copies = {styles: target, styles.with_suffix(".json"): target.with_suffix(".json")}
    for source, copy in (copies | {file: state_file(run_dir)}).items():
        if source.is_file() and source.resolve() != copy.resolve():
            with atomic_path(copy) as temporary:
                shutil.copyfile(source, temporary)


def drop_snapshot(run_dir: Path) -> None:
    """Remove the state of a pretraining that is finished, and what a killed process left half-written."""
    file = state_file(run_dir)
    file.unlink(missing_ok=True)
    for half in file.parent.glob(f".{_FILE}.*"):
        half.unlink(missing_ok=True)


def _read_header(file: Path) -> _Header:
    try:
        with safe_open(file, framework="np") as opened:
            return _Header.model_validate_json((opened.metadata() or {}).get(_KEY, "null"))
    except ValidationError:
        reason = "it is of another kind or release"
    except (SafetensorError, OSError) as error:
        reason = str(error)
    raise UserError(f"The stopped pretraining {file} cannot be read ({reason}); remove it to pretrain anew.")
