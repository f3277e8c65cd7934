"""Checksums of a folder of shards: ``partition.json`` keeps those of the manifests beside it, and its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError

# Under this key, and in it under this name for the file itself.
CHECKSUMS, _OWN = "checksums", "partition"


def with_checksums(described: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what ``partition.json`` of a folder is to say, with the SHA-256 of all its manifests and its own."""
    sums = {path.name: _file_hash(path) for path in sorted(folder.glob("*.jsonl"))}
    return {**described, CHECKSUMS: sums | {_OWN: _own_hash(described, sums)}}


def check_partition_file(text: bytes, path: Path) -> None:
    """Raise `UserError` where a ``partition.json`` has changed since it was written; others have no checksum."""
    described = json.loads(text)
    sums = dict(described.pop(CHECKSUMS, {}))
    own = sums.pop(_OWN, None)
    if own is not None and own != _own_hash(described, sums):
        raise UserError(
            f"{path} has changed since it was written; make the shards again, or take '{CHECKSUMS}' out of it where "
            "that was on purpose."
        )


def check_manifest(path: Path, sums: Mapping[str, str]) -> None:
    """Raise `UserError` where a manifest has changed since ``partition.json`` was written."""
    expected = sums.get(path.name)
    if expected is not None and expected != _file_hash(path):
        raise UserError(
            f"The manifest {path} has changed since it was written; make the shards again, or take '{CHECKSUMS}' out "
            "of the partition.json beside it where that was on purpose."
        )


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_hash(described: Mapping[str, Any], sums: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([described, sums], sort_keys=True).encode()).hexdigest()
