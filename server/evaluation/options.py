"""Options of `evaluate`, as the tasks take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.evaluation.protocol import Matching, Protocol
from server.inference.base import Cluster

ALL_SITES = "all"
"""The word for every site's own model, one after the other."""


@dataclass(frozen=True)
class Scoring:
    """How a checkpoint is scored (see `server.evaluation.command.evaluate_checkpoint` for each option)."""

    crf: bool = False
    flip: bool = False
    matching: Matching | None = None
    protocol: Protocol = "label-size"
    cluster: Cluster = "auto"
    site: str | None = None
    cache_dir: str | Path | None = None
    device: str = "auto"
    progress: Callable[[int, int], None] | None = None
