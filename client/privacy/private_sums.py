"""Clipping and noise: how much one image, or one site, weighs in the sums that a site sends.

Every sum is over images, of vectors of bounded norm: an image's sums per patch, shortened where they are longer.
With unit ``image`` a site adds these vectors up, with unit ``site`` it takes their mean. Either way the total over
all sites changes by no more than the bound if one unit is blanked out. Gaussian noise in proportion to the bound
covers the unit; the privacy accountant says how well. Numbers of images are public.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from client.statistics import received_head, spherical_sums
from common.features.codes import unit_codes
from common.features.source import Features
from common.losses.base import ClosedForm, NamedArrays, clipping_bound, unit
from common.privacy.packed_sums import PackedSums, pack, unpack
from common.privacy.secure_masks import KEY_BYTES, normals, subkey
from common.settings.schema import RunConfig

# Digits of a noisy number below its noise: steps of the noise itself are 2^-42 of such a cell's chance.
_GRID_BITS = 20


def noise_key() -> bytes:
    """Return a fresh key for one message's noise, from the operating system; tests put another in its place."""
    return os.urandom(KEY_BYTES)


def shortened(vector: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """Return the vector, scaled down to Euclidean length ``bound`` where it is longer; 0 is no bound."""
    length = float(np.linalg.norm(vector))
    return vector * (bound / length) if bound and length > bound else vector


def clipped_change(new: NamedArrays, old: NamedArrays, bound: float) -> dict[str, np.ndarray]:
    """Return ``new`` moved back towards ``old`` so that all arrays together changed by ``bound`` at most."""
    change = pack({name: value.astype(np.float64) - old[name] for name, value in new.items()})
    parts = unpack(shortened(change, bound), {name: value.shape for name, value in new.items()})
    return {name: (old[name] + part).astype(new[name].dtype) for name, part in parts.items()}


def without_small(
    arrays: NamedArrays, rows: str, minimum: int, instead: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return arrays in which clusters of fewer than ``minimum`` patches look empty.

    ``arrays`` holds ``counts`` [K] and what else is told by cluster; ``instead`` [K, D] replaces the array called
    ``rows``, zeros the others. In tables of counts by something else, small cells are 0.
    """
    small = arrays["counts"] < minimum
    found = {key: np.array(value) for key, value in arrays.items()}
    for key, value in found.items():
        if len(value) != len(small):
            if value.dtype.kind in "iu":
                value[value < minimum] = 0
            continue
        value[small] = instead[small] if key == rows and instead is not None else 0
    return found


def without_small_cells(
    confusion: NDArray[np.int64], patches: NDArray[np.int64], minimum: int
) -> NDArray[np.int64]:
    """Return a confusion matrix [K, C] of pixels that tells of no cluster, and of no cell, that is small.

    A cluster of fewer than ``minimum`` of the K ``patches`` is empty, as in the sums. Of the others, cells of fewer
    pixels than that are 0.
    """
    hidden = (patches < minimum)[:, None] | (confusion < minimum)
    return np.where(hidden, 0, confusion)


@torch.no_grad()
def bounded_cluster_sums(
    features: Features, head: NamedArrays, centroids: np.ndarray, config: RunConfig
) -> PackedSums:
    """Run one pass of exact k-means over a shard, each image's share bounded by ``privacy.clip-sums``.

    Returns ``sums/sums`` [K, D] and ``sums/counts`` [K] per patch: an image's counts add up to 1 before it
    is shortened.
    """
    privacy = config.privacy
    module = received_head(features, head, config).eval()
    means = unit(torch.from_numpy(np.asarray(centroids, dtype=np.float64)).to(features.device))
    total = np.zeros(means.shape[0] * (means.shape[1] + 1))
    for codes in unit_codes(features, module, config):
        for image in codes:
            found = spherical_sums(image, means)
            vector = np.concatenate([np.ravel(found.sums), found.counts.astype(np.float64)]) / len(image)
            total += shortened(vector, privacy.clip_sums)
    total /= len(features) if privacy.unit == "site" else 1
    split = means.numel()
    return {"sums/sums": total[:split].reshape(means.shape), "sums/counts": total[split:]}


@torch.no_grad()
def bounded_sums(closed: ClosedForm, features: Features, config: RunConfig) -> PackedSums:
    """Add up a closed form's sums over a shard, each image's part bounded by the objective's clipping norm.

    Returns ``kind/name`` for every array of `ClosedForm.image_sums`.
    """
    total: NDArray[np.float64] | float = 0.0
    shapes = closed.noisy_shapes(closed.shapes(features.channels))
    for parts in closed.image_sums(features):
        total = total + shortened(np.concatenate([parts[name] for name in shapes]), clipping_bound(config))
    total = np.asarray(total) / (len(features) if config.privacy.unit == "site" else 1)
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1]
    return {f"{closed.kind}/{name}": part for name, part in zip(shapes, np.split(total, ends), strict=True)}


def noise_share(config: RunConfig, fewest: int) -> float:
    """Return which part of the wanted standard deviation a site adds itself.

    All of it where the server sees every site's sums. Under secure summation the noises of the ``fewest``
    sites, without which no total is opened, have to make it up together.
    """
    return 1 / math.sqrt(fewest) if config.privacy.secure_sum else 1.0  # variances add up


def add_noise(parts: Mapping[str, PackedSums], config: RunConfig, share: float, key: bytes) -> PackedSums:
    """Return all parts with noise: ``sums``, and ``head`` or what a closed form adds up, each of its own bound.

    What is sent lies on a grid of about a millionth of the noise: the last digits of floating-point numbers would
    tell which numbers the noise was added to (Mironov, CCS 2012). Rounding after the noise costs no privacy.
    """
    privacy = config.privacy
    found: PackedSums = {}
    for name, values in parts.items():
        bound = privacy.clip_sums if name == "sums" else clipping_bound(config)
        deviation = share * privacy.noise_multiplier * bound
        # a key of its own for each part: the same noise twice would cancel in a difference
        drawn = normals(subkey(key, name), sum(value.size for value in values.values()))
        noise = unpack(drawn, {entry: value.shape for entry, value in values.items()})
        found |= {
            entry: snapped(value + deviation * noise[entry], deviation) for entry, value in values.items()
        }
    return found


def snapped(values: NDArray[np.float64], deviation: float) -> NDArray[np.float64]:
    """Return values rounded to multiples of the power of two that is about 2^-20 of the noise on them."""
    if not deviation > 0:
        return values
    grid = 2.0 ** (math.floor(math.log2(deviation)) - _GRID_BITS)
    return np.rint(values / grid) * grid
