"""Nearest neighbours: which images of a shard look most alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from common.seeds import numpy_generator

_BLOCK_ELEMENTS = 4_000_000
"""Similarities held at once (32 MB in float64)."""


def nearest_neighbours(pooled: NDArray[np.float32], k: int, name: str = "the shard") -> NDArray[np.int64]:
    """Return each image's k most similar other images, most similar first.

    Similarity is the cosine of pooled features (STEGO, Hamilton et al., 2022, section 4.1), compared
    exhaustively, in blocks of rows so that memory stays bounded. Cosines that agree to ten decimals
    count as equal; among equals the lower index comes first, so the answer depends neither on the block
    size nor on the order in which the machine adds.

    Args:
        pooled: [N, C], one vector an image.
        k: neighbours per image, 1 ... N - 1.
        name: how to call the shard in the message.

    Returns:
        int64 [N, k]; row i never holds i.

    Raises:
        UserError: where the shard has fewer than k + 1 images.
    """
    count = len(pooled)
    if count <= k:
        advice = f"set local.neighbours to at most {count - 1} or add images" if count > 1 else "add images"
        raise UserError(
            f"{name} holds {count} image{'s' if count != 1 else ''}, but local.neighbours = {k} needs "
            f"at least {k + 1}; {advice}."
        )
    units = pooled.astype(np.float64)
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
    found = np.empty((count, k), dtype=np.int64)
    rows = max(1, _BLOCK_ELEMENTS // count)
    for start in range(0, count, rows):
        block = units[start : start + rows]
        distance = np.round(-(block @ units.T), 10)
        own = np.arange(len(block))
        distance[own, start + own] = np.inf
        found[start : start + rows] = _k_smallest(distance, k)
    return found


def drop_channels(pooled: NDArray[np.float32], dropout: float, seed: int) -> NDArray[np.float32]:
    """Return pooled features [N, C] without a random share of their channels, another draw for each image.

    What pooling gives under channel dropout: a mask holds for all patches of an image, so that masking the
    mean is masking the patches. The factor 1 / (1 - dropout) is left out, as no cosine knows of it.
    """
    if not dropout:
        return pooled
    kept = numpy_generator(seed).random(pooled.shape, dtype=np.float32) >= dropout
    return np.where(kept, pooled, np.float32(0))


def _k_smallest(values: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Return the columns of each row's k smallest values, by value and then by column."""
    limit = np.partition(values, k - 1, axis=1)[:, k - 1 : k]
    row, column = np.nonzero(values <= limit)  # at least k a row, more where the k-th value is tied
    order = np.lexsort((column, values[row, column], row))
    first = np.searchsorted(row, np.arange(len(values)))
    chosen: NDArray[np.int64] = column[order][first[:, None] + np.arange(k)]
    return chosen
