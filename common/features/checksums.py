"""Checksums of a feature cache: small files are checked when it is opened, rows of tokens when they are first read.

CRC-32 (zlib's, 5 GB/s) notices what disks and mistakes do. Who may write the cache may write its checksums as well.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError

# The file with the sums of rows, and the name under which a header keeps its own.
SUMS, HEADER = "sums.bin", "header"


class RowSums:
    """CRC-32 of the rows of ``tokens.bin``; each is checked once, when this process first reads it."""

    def __init__(self, folder: Path, sums: NDArray[np.uint32]) -> None:
        """Take the sums of a cache in ``folder``, one for each row."""
        self._folder, self._sums, self._seen = folder, sums, np.zeros(len(sums), bool)

    def check(self, rows: NDArray[Any], indices: NDArray[Any]) -> None:
        """Check rows of ``rows`` [N, h*w, C]; raises `UserError` where one has changed since it was written."""
        for index in np.unique(indices):
            if self._seen[index]:
                continue
            if zlib.crc32(rows[index].data) != self._sums[index]:
                with suppress(OSError):
                    (self._folder / "header.json").unlink()  # whoever opens it next makes it anew
                raise UserError(
                    f"The feature cache {self._folder} is damaged (row {index} has changed since it was written); "
                    "it is made anew the next time."
                )
            self._seen[index] = True


def checked_sums(
    folder: Path, images: int, expected: Mapping[str, int], found: Mapping[str, int | NDArray[Any]]
) -> RowSums:
    """Compare the sums that a header keeps by file with what was read; raises ValueError where one differs."""
    rows = np.fromfile(folder / SUMS, dtype=np.uint32)
    for name, value in {**found, SUMS: rows}.items():
        if expected.get(name) != (value if isinstance(value, int) else zlib.crc32(value.data)):
            raise ValueError(f"{name} has changed since it was written")
    if len(rows) != images:
        raise ValueError(f"{SUMS} is of another number of images")
    return RowSums(folder, rows)
