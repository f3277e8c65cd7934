"""A site's state on disk between rounds, optimizer moments included: one file per run and round.

In deployment every message starts a new process, so memory lives on the site's disk. A run that is resumed
from round r finds the state as it was after round r.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from common.system.atomic import atomic_write_bytes

_log = logging.getLogger(__name__)


def run_folder(state_dir: Path, run_key: str) -> Path:
    """Return where a site keeps what belongs to one run."""
    # the key comes from the server: whatever it says, the folder stays below the state folder
    return state_dir / "runs" / (re.sub(r"[^A-Za-z0-9_-]", "_", run_key)[:120] or "_")


def _rounds(folder: Path) -> list[tuple[int, Path]]:
    """Return (round, file) of a run, newest first."""
    found = [(path.stem.removeprefix("round-"), path) for path in folder.glob("round-*.safetensors")]
    return sorted(((int(number), path) for number, path in found if number.isdigit()), reverse=True)


def load_state(state_dir: Path, run_key: str, before_round: int) -> dict[str, np.ndarray]:
    """Return the newest state of a run from before a round; empty where there is none."""
    for number, path in _rounds(run_folder(state_dir, run_key)):
        if number < before_round:
            try:
                return load_file(path)
            except (SafetensorError, OSError) as error:
                _log.warning("site state %s cannot be read (%s): starting this round without it", path, error)
                return {}
    return {}


def save_state(
    state_dir: Path, run_key: str, round_number: int, state: dict[str, np.ndarray], keep: int = 0
) -> None:
    """Keep the state after a round; the newest ``keep`` rounds stay (0: all)."""
    if not state:
        return
    folder = run_folder(state_dir, run_key)
    data = save({name: np.ascontiguousarray(array) for name, array in state.items()})
    atomic_write_bytes(folder / f"round-{round_number:04d}.safetensors", data)
    if keep > 0:
        for _, old in _rounds(folder)[keep:]:
            old.unlink(missing_ok=True)


def without_prefix(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays whose names start with a prefix, without it."""
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def moments_to_numpy(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, np.ndarray]:
    """Return Adam's state as named arrays: ``prefix/parameter number/moment``."""
    return {
        f"{prefix}/{number}/{name}": value.cpu().numpy().copy()
        for number, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
    }


def load_moments(optimizer: torch.optim.Optimizer, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
    """Load what `moments_to_numpy` returned; names of other prefixes are ignored, none at all is a fresh start.

    Raises ValueError where a moment has not the shape of its parameter.
    """
    shapes = [tuple(parameter.shape) for group in optimizer.param_groups for parameter in group["params"]]
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for key, array in without_prefix(arrays, f"{prefix}/").items():
        number, _, name = key.partition("/")
        index = int(number)
        # Adam counts its steps in one number, whatever the parameter
        if index >= len(shapes) or (name != "step" and array.shape != shapes[index]):
            raise ValueError(
                f"The kept optimizer state {prefix}/{key} {array.shape} does not fit; delete this site's state."
            )
        entries.setdefault(index, {})[name] = torch.from_numpy(np.array(array))
    if entries:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
