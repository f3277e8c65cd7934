"""Teachers on a site's disk: the networks that label its pixels.

A teacher is as large as the network itself and changes rarely or never. It lies on the site's disk under its
hash; the server sends it only to sites that do not say they hold it. Every run has a folder of its own, because
runs that share a disk would otherwise throw out each other's.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from client.site import SiteConfig
from client.state import run_folder
from client.work.network import blank_network
from common import wire
from common.errors import UserError
from common.models.network import SegmentationNetwork, load_arrays
from common.models.parameter_groups import split_flat
from common.settings.schema import RunConfig
from common.system.atomic import atomic_write_bytes

ROLES = ("teacher", "pretrained")
FOLDER = "teachers"
# after so long a network of another run goes; should it be wanted after all, the server sends it again
UNUSED_SECONDS = 3600.0
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Teachers:
    """The networks of a round, in evaluation mode without gradients; ``held`` names what lies on disk now."""

    teacher: SegmentationNetwork | None
    pretrained: SegmentationNetwork | None
    held: tuple[str, ...]


def collect_teachers(task: wire.Task, settings: RunConfig, site: SiteConfig, device: str) -> Teachers:
    """Keep what the message brought, load what it only names, and forget the rest; after the last round, all.

    A teacher of the same hash as the pretrained network is the same object. Raises `UserError` where the
    message names a network that does not lie here; the server sends it again in the next round.
    """
    state_dir = site.state_dir / site.name
    folder = run_folder(state_dir, task.run_key) / FOLDER
    named = {role: str(task.options[role]) for role in ROLES if role in task.options}
    for role, key in named.items():
        if not _HASH.fullmatch(key):
            raise UserError(f"The server names its {role} {key[:20]!r}; expected a SHA-256, run one release.")
        sent = {**task.groups.get(f"{role}-weights", {}), **task.groups.get(f"{role}-statistics", {})}
        if sent:
            arrays = {name: np.ascontiguousarray(array) for name, array in sent.items()}
            atomic_write_bytes(folder / f"{key}.safetensors", save(arrays))
    forget(folder, set(named.values()))
    forget_other_runs(state_dir, folder)
    loaded: dict[str, SegmentationNetwork] = {}
    for key in sorted(set(named.values())):
        module = blank_network(task, settings)
        load_arrays(module, *split_flat(module, read_teacher(folder / f"{key}.safetensors")))
        loaded[key] = module.to(device).eval().requires_grad_(False)
    if task.round >= settings.rounds:
        forget(folder, set())
    return Teachers(
        loaded.get(named.get("teacher", "")),
        loaded.get(named.get("pretrained", "")),
        tuple(sorted(loaded)) if task.round < settings.rounds else (),
    )


def read_teacher(path: Path) -> dict[str, np.ndarray]:
    """Read a kept network; a file that is missing or damaged is a `UserError`, and no longer there afterwards."""
    try:
        os.utime(path)  # in use: other runs leave it alone
        return load_file(path)
    except (OSError, SafetensorError):
        path.unlink(missing_ok=True)
        raise UserError(
            "A teacher does not lie on this site's disk any more; it will be sent again."
        ) from None


def forget(folder: Path, wanted: set[str]) -> None:
    """Remove kept networks that the server no longer names."""
    if folder.is_dir():
        for path in folder.glob("*.safetensors"):
            if path.stem not in wanted:
                path.unlink(missing_ok=True)


def forget_other_runs(state_dir: Path, folder: Path) -> None:
    """Remove networks that other runs have not used for a while: a run that was stopped never says so."""
    oldest = time.time() - UNUSED_SECONDS
    for path in state_dir.glob(f"runs/*/{FOLDER}/*.safetensors"):
        with contextlib.suppress(FileNotFoundError):  # its own run was quicker
            if path.parent != folder and path.stat().st_mtime < oldest:
                path.unlink()
