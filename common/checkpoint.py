"""Checkpoints: a trained model and the state of its run on disk.

``round-0003.safetensors`` holds the arrays, ``round-0003.json`` beside it everything a reader wants to know.
Both are written to temporary files and renamed, the JSON last: a checkpoint without its JSON does not exist.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from common.data.classes import ClassTable
from common.errors import UserError, user_error
from common.settings.load import from_record
from common.settings.schema import RunConfig
from common.system.atomic import atomic_write_bytes, atomic_write_text

# The key in the JSON with the hash of the JSON itself; absent from checkpoints of earlier releases.
_SUM = "json_sha256"
_FORMAT = 1  # to be raised where a file could be misread by an older release
# Prefix, in the file, of the arrays of the shared model that are no centroids.
MODEL = "head/"
CENTROIDS = "centroids"
EXTRA = "extra/"
# How the names of everything else start.
STATE = (CENTROIDS, EXTRA)


@dataclass
class Checkpoint:
    """A round's result: arrays of the model, of the server's state, and what describes them.

    ``head`` and ``centroids`` ([K, D]) are the shared model. ``extra`` holds server-side state by name
    (optimiser moments, centroid momentum, the sites' own parts as ``site/NAME/head/KEY``).
    ``mapping`` names the class of each cluster as matched at the last scored round, -1 for none.
    ``metrics`` is the round's line of ``metrics.jsonl``.
    """

    round: int
    head: dict[str, np.ndarray]
    centroids: np.ndarray
    config: RunConfig
    classes: ClassTable | None
    weights_hash: str
    channels: int
    grid: tuple[int, int]
    run_key: str = ""
    mapping: list[int] | None = None
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return every array under its name in the file."""
        named = {f"{MODEL}{key}": value for key, value in self.head.items()}
        named[CENTROIDS] = self.centroids
        return named | {f"{EXTRA}{key}": value for key, value in self.extra.items()}


class _Sidecar(BaseModel):
    """The JSON beside the arrays; other keys than these are left alone."""

    model_config = ConfigDict(extra="ignore")

    round: Annotated[int, Field(ge=0)]
    weights_sha256: str
    channels: Annotated[int, Field(ge=0)]
    grid: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    run_key: str
    mapping: list[Annotated[int, Field(ge=-1)]] | None
    classes: ClassTable | None
    metrics: dict[str, Any]
    config: dict[str, Any]  # read by `RunConfig` on its own: a setting that is refused needs another remedy


def arrays_hash(arrays: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes, independent of the order of names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _described_hash(described: dict[str, Any]) -> str:
    """Return the SHA-256 over all that the JSON says beside this hash, however it is indented."""
    rest = {key: value for key, value in described.items() if key != _SUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


# A folder for a model hub: its arrays, what describes them, and the backbone's weights where they were a file.
HUB_ARRAYS, HUB_CONFIG, HUB_BACKBONE = "model.safetensors", "config.json", "backbone.safetensors"


def checkpoint_path(run_dir: Path, round_number: int) -> Path:
    """Return where the arrays of a round lie inside a run directory."""
    return run_dir / "checkpoints" / f"round-{round_number:04d}.safetensors"


def described_by(file: Path) -> Path:
    """Return the JSON file that belongs to a file of arrays."""
    return file.with_name(HUB_CONFIG) if file.name == HUB_ARRAYS else file.with_suffix(".json")


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> str:
    """Write a checkpoint atomically and return the hash of its arrays."""
    arrays = {name: np.ascontiguousarray(array) for name, array in checkpoint.arrays().items()}
    digest = arrays_hash(arrays)
    atomic_write_bytes(
        path, save(arrays)
    )  # safetensors' own writer hides what the system says of a full disk
    described = {
        "format": _FORMAT,
        "round": checkpoint.round,
        "arrays_sha256": digest,
        "weights_sha256": checkpoint.weights_hash,
        "channels": checkpoint.channels,
        "grid": list(checkpoint.grid),
        "run_key": checkpoint.run_key,
        "mapping": checkpoint.mapping,
        "classes": None if checkpoint.classes is None else checkpoint.classes.to_json(),
        "metrics": checkpoint.metrics,
        "config": json.loads(checkpoint.config.to_json()),
    }
    described[_SUM] = _described_hash(described)
    atomic_write_text(described_by(path), json.dumps(described, indent=2))
    return digest


def rename_classes(file: Path, classes: ClassTable, mapping: list[int]) -> None:
    """Write other classes, and the class of each cluster, beside the arrays of a checkpoint, which stay as they are.

    Raises `UserError` where the checkpoint cannot be read.
    """
    load_checkpoint(file)  # refuses what is damaged
    sidecar = described_by(file)
    described = json.loads(sidecar.read_text(encoding="utf-8"))
    described |= {"classes": classes.to_json(), "mapping": mapping}
    described[_SUM] = _described_hash(described)
    atomic_write_text(sidecar, json.dumps(described, indent=2))


def _sidecars(folder: Path) -> list[Path]:
    """Return the JSON files of a folder's checkpoints in the order of their rounds."""
    found = [(path.stem.removeprefix("round-"), path) for path in folder.glob("round-*.json")]
    return [path for _, path in sorted((int(number), path) for number, path in found if number.isdigit())]


def checkpoint_file(path: Path) -> Path:
    """Return the newest checkpoint of a run directory, or the file given; `UserError` for an empty folder."""
    if not path.is_dir():
        return path
    if (path / HUB_ARRAYS).is_file():
        return path / HUB_ARRAYS
    found = _sidecars(path / "checkpoints") or _sidecars(path)
    if not found:
        raise UserError(f"{path} holds no checkpoint; give a run directory or a round-NNNN.safetensors file.")
    return found[-1].with_suffix(".safetensors")


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint; raises `UserError` where it is missing, half-written or of another kind."""
    file = checkpoint_file(Path(path))
    if file.suffix == ".json":
        file = file.with_suffix(".safetensors")
    sidecar = described_by(file)
    if not file.is_file() or not sidecar.is_file():
        missing = file if not file.is_file() else sidecar
        raise UserError(
            f"Checkpoint {missing} does not exist; give a run directory or a round-NNNN.safetensors file."
        )
    try:
        described = json.loads(sidecar.read_text(encoding="utf-8"))
        arrays = load_file(file)
    except (ValueError, KeyError, RecursionError, SafetensorError, OSError) as error:
        raise UserError(
            f"Checkpoint {file} cannot be read ({error}); use another round's checkpoint."
        ) from None
    if not isinstance(described, dict) or described.get("format") != _FORMAT or CENTROIDS not in arrays:
        raise UserError(
            f"{file} is not a checkpoint of this program; give a round-NNNN.safetensors file of a run."
        )
    if arrays_hash(arrays) != described.get("arrays_sha256") or described.get(
        _SUM, _described_hash(described)
    ) != _described_hash(described):
        raise UserError(
            f"Checkpoint {file} does not match its JSON (damaged or mixed up); use another round's."
        )
    try:
        known = _Sidecar.model_validate(described)
    except ValidationError as error:
        raise user_error(error, f"{sidecar} is not complete:", "use another round's checkpoint") from None
    limit = None if known.classes is None else known.classes.num_classes
    if limit is not None and max(known.mapping or [-1]) >= limit:
        raise UserError(
            f"{sidecar} maps a cluster to class {max(known.mapping or [])} of {limit}; use another round's checkpoint."
        )
    try:
        config = from_record(known.config)
    except ValidationError as error:
        where = f"Checkpoint {file} has settings that this version does not accept:"
        raise user_error(error, where, "use the version that wrote it") from None
    if config.model.weights == HUB_BACKBONE:
        beside = str(file.with_name(HUB_BACKBONE))
        config = config.model_copy(update={"model": config.model.model_copy(update={"weights": beside})})
    return Checkpoint(
        round=known.round,
        head={k.removeprefix(MODEL): v for k, v in arrays.items() if k.startswith(MODEL)},
        centroids=arrays[CENTROIDS],
        config=config,
        classes=known.classes,
        weights_hash=known.weights_sha256,
        channels=known.channels,
        grid=known.grid,
        run_key=known.run_key,
        mapping=known.mapping,
        extra={k.removeprefix(EXTRA): v for k, v in arrays.items() if k.startswith(EXTRA)},
        metrics=known.metrics,
    )


def prune_checkpoints(run_dir: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` rounds; 0 keeps everything."""
    if keep <= 0:
        return
    for sidecar in _sidecars(run_dir / "checkpoints")[:-keep]:
        sidecar.unlink(missing_ok=True)  # first the JSON: without it the checkpoint does not exist
        sidecar.with_suffix(".safetensors").unlink(missing_ok=True)


def drop_checkpoints(run_dir: Path, after: int) -> None:
    """Remove the rounds after ``after``, newest first, and what a killed process left half-written.

    A run that goes back writes these rounds again; until then they belong to another course of it.
    """
    folder = run_dir / "checkpoints"
    for sidecar in reversed(_sidecars(folder)):
        if int(sidecar.stem.removeprefix("round-")) > after:
            sidecar.unlink(missing_ok=True)
            sidecar.with_suffix(".safetensors").unlink(missing_ok=True)
    for half in folder.glob(".round-*"):
        half.unlink(missing_ok=True)
    for arrays in folder.glob("round-*.safetensors"):
        if not arrays.with_suffix(".json").exists():
            arrays.unlink(missing_ok=True)


def resumed_file(given: str, checkpoint: Checkpoint) -> Path:
    """Return the file that ``given`` (a file or a run directory) stood for."""
    path = Path(given)
    return checkpoint_path(path, checkpoint.round) if path.is_dir() else path.with_suffix(".safetensors")
