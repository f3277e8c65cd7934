"""What must a site remember from one round to the next?

In deployment every message starts a new process, so memory lives on the site's disk: one file per run
and round. A run that is resumed from round r finds the state as it was after round r.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from common.atomic import atomic_path

log = logging.getLogger(__name__)


def _folder(state_dir: Path, run_key: str) -> Path:
    return state_dir / "runs" / re.sub(r"[^A-Za-z0-9._-]", "_", run_key)


def load_state(state_dir: Path, run_key: str, before_round: int) -> dict[str, np.ndarray]:
    """Return the newest state of a run from before a round; empty where there is none."""
    for path in sorted(_folder(state_dir, run_key).glob("round-*.safetensors"), reverse=True):
        if int(path.stem.removeprefix("round-")) < before_round:
            try:
                return load_file(path)
            except (SafetensorError, OSError) as error:
                log.warning("site state %s cannot be read (%s): starting this round without it", path, error)
                return {}
    return {}


def save_state(
    state_dir: Path, run_key: str, round_number: int, state: dict[str, np.ndarray], keep: int = 0
) -> None:
    """Keep the state after a round; the newest ``keep`` rounds stay (0: all)."""
    if not state:
        return
    folder = _folder(state_dir, run_key)
    with atomic_path(folder / f"round-{round_number:04d}.safetensors") as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, temporary)
    if keep > 0:
        for old in sorted(folder.glob("round-*.safetensors"))[:-keep]:
            old.unlink(missing_ok=True)
