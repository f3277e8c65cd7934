"""Random codes that follow from a seed, and how near two of them are."""

from __future__ import annotations

import numpy as np
import torch


def generator(seed: int = 0) -> torch.Generator:
    """Return a generator of random numbers on the CPU."""
    return torch.Generator().manual_seed(seed)


def draw(seed: int, *shape: int) -> torch.Tensor:
    """Return normal numbers of a shape."""
    return torch.randn(*shape, generator=generator(seed))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine of the angle between two vectors."""
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
