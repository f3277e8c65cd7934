"""Random generators of a run, all derived from its one seed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for one purpose, e.g. ``derive(seed, "site-3", round, "batches")``.

    Hashing the names keeps streams apart without a shared generator, so that a site's draws do not
    depend on which other sites ran, in which order, or in which process.
    """
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1  # torch's seeds are signed


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator for one purpose (see `derive`)."""
    import torch  # not at import time: commands that draw nothing answer at once

    return torch.Generator().manual_seed(derive(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a numpy generator for one purpose (see `derive`)."""
    return np.random.default_rng(derive(seed, *names))
