"""Disk buffer: replies wait in files until a round is over.

The mean over sites is taken in the order of their names, so the first answer may have to wait for the last.
A file of the run directory keeps it: mapped, its pages leave memory when others need the room. It has no name
in the folder, so that nothing is left of it whatever ends the run.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from common import wire
from common.errors import UserError

ALIGNED = 16


def buffered(update: wire.Update, folder: Path) -> wire.Update:
    """Return the update with arrays that lie in a file of ``folder``, read-only; raises `UserError` on a full disk."""
    found = [(name, key, array) for name, arrays in update.groups.items() for key, array in arrays.items()]
    groups: wire.Groups = {name: {} for name in update.groups}
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            places = []
            for _, _, array in found:
                file.write(bytes(-file.tell() % ALIGNED))
                places.append(file.tell())
                file.write(np.ascontiguousarray(array).data)
            file.flush()
            pages = np.memmap(file, dtype=np.uint8, mode="r") if file.tell() else np.zeros(0, np.uint8)
    except OSError as error:
        raise UserError(
            f"Cannot keep an answer of site {update.site} in {folder}: {error.strerror or error}; free some space and "
            "go on with resume."
        ) from error
    for (name, key, array), place in zip(found, places, strict=True):
        groups[name][key] = pages[place : place + array.nbytes].view(array.dtype).reshape(array.shape)
    return replace(update, groups=groups)
