"""Output folder that appears completely or not at all."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.data.manifest import PARTITION_FILE, read_partition, write_manifest, write_partition
from common.errors import UserError
from partitions.plan import Split


def _ours(folder: Path) -> set[str]:
    """Return the names in ``folder`` that an earlier run of the command has written."""
    if not (folder / PARTITION_FILE).is_file():
        return set()
    try:
        known = read_partition(folder)
    except UserError:
        return set()
    names = {PARTITION_FILE, "split.png", *(f"{name}.jsonl" for name in (*known.sites, *known.evaluation))}
    return names | ({"data"} if known.root == folder.resolve() / "data" else set())


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise `UserError` where ``folder`` holds something that may not be replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--out {folder} is a file; give a folder.")
    present = {path.name for path in folder.iterdir()}
    if not present:
        return
    strange = sorted(name for name in present - _ours(folder) if not re.fullmatch(r"site-\d+\.jsonl", name))
    if strange or not (folder / PARTITION_FILE).is_file():
        raise UserError(
            f"--out {folder} holds other files ({', '.join((strange or sorted(present))[:3])}); give a new "
            "folder."
        )
    if not overwrite:
        raise UserError(
            f"--out {folder} holds a split already; give a new folder, or --overwrite to replace it."
        )


@contextmanager
def staged_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a hidden folder beside ``folder`` that takes its place on success and vanishes on failure.

    Raises `UserError` where the place cannot be written, the disk is full, or something that this
    command has not written would be lost.
    """
    check_output(folder, overwrite)
    stage = old = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        yield stage
        check_output(folder, overwrite)  # something may have come meanwhile, a --root inside, say
        stage.chmod(0o755)  # temporary folders are their user's alone
        if folder.exists() and any(folder.iterdir()):
            old = stage.with_name(stage.name + ".old")
            folder.rename(old)
        try:
            stage.replace(folder)
        except OSError:
            if old is not None:
                old.rename(folder)
            raise
    except OSError as error:
        raise UserError(
            f"Cannot write --out {folder}: {error.strerror or error}; choose a folder that you may write to, "
            "with enough space."
        ) from error
    finally:
        for leftover in (stage, old):
            if leftover is not None:
                shutil.rmtree(leftover, ignore_errors=True)


def write(split: Split, folder: Path, final: Path) -> None:
    """Write manifests, ``partition.json`` and ``split.png`` into ``folder``, which will become ``final``."""
    from partitions.figure import figure_of  # not at import time: matplotlib is slow to load

    for site in split.sites:
        write_manifest(folder / f"{site}.jsonl", split.entries(site))
    for name in split.dataset.evaluation:
        write_manifest(folder / f"{name}.jsonl", split.evaluation(name))
    write_partition(folder, split.partition(), final)
    figure_of(split).save(folder / "split.png", optimize=True)
