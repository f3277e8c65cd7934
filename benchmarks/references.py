"""What masks without training are worth, and what labels would give: the references of `benchmarks/label_free.py`.

Each takes the settings, the shard to score, the sites' shards and a seed, and returns maps by image with the number of
their outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data.images import entry_image
from common.data.manifest import Shard
from common.evaluation.clusters import evaluate_segmenter, seen_label
from common.evaluation.probe import (
    MOST_OF_AN_IMAGE,
    PIXELS,
    LinearProbe,
    fit_linear,
    join_pixels,
    sample_pixels,
)
from common.features.cache import open_features
from common.models.codes import otsu
from common.models.input_size import fitted_to
from common.models.segmenter import Geometry, Segmenter
from common.seeds import numpy_generator
from common.settings.schema import RunConfig

Maps = tuple[Mapping[int, np.ndarray], int]
_OF_AN_IMAGE = 200  # pixels that colors are clustered by


def _nearest(points: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return the nearest mean [H, W] uint8 of points [H, W, D]."""
    gaps = np.stack([np.square(points - mean).sum(axis=-1) for mean in means])
    return gaps.argmin(axis=0).astype(np.uint8)


def _means(points: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return np.asarray(KMeans(clusters, n_init=6, random_state=seed).fit(points).cluster_centers_)


def _sizes(shard: Shard, config: RunConfig) -> dict[int, tuple[int, ...]]:
    model = fitted_to(config, shard).model
    labels = {index: seen_label(shard, index, model) for index in range(len(shard))}
    return {index: label.shape for index, label in labels.items() if label is not None}


def _places(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([(rows + 0.5) / height, (columns + 0.5) / width], axis=-1)


def position_means(config: RunConfig, shard: Shard, sites: Sequence[Shard], seed: int) -> Maps:
    """Cluster by place alone: the same map for every image of a size."""
    means = _means(_places(64, 64).reshape(-1, 2), config.model.clusters, seed)
    sizes = _sizes(shard, config)
    return {index: _nearest(_places(*size), means) for index, size in sizes.items()}, len(means)


def color_means(config: RunConfig, shard: Shard, sites: Sequence[Shard], seed: int) -> Maps:
    """Cluster by color alone: k-means of pixels of all sites' images."""
    drawn = []
    for site in sites:
        for index in range(len(site)):
            pixels = entry_image(site, index).reshape(-1, 3)
            generator = numpy_generator(seed, "colors", site.name, index)
            drawn.append(pixels[generator.integers(len(pixels), size=_OF_AN_IMAGE)])
    means = _means(np.concatenate(drawn).astype(np.float64), config.model.clusters, seed)
    maps = {
        index: _nearest(entry_image(shard, index).astype(np.float64), means)
        for index in _sizes(shard, config)
    }
    return maps, len(means)


def otsu_masks(config: RunConfig, shard: Shard, sites: Sequence[Shard], seed: int) -> Maps:
    """Part each image by Otsu's threshold of its gray values; the smaller part is the thing."""
    maps = {}
    for index in _sizes(shard, config):
        gray = entry_image(shard, index).astype(np.float64).mean(axis=2)
        bright = gray > float(otsu(torch.from_numpy(gray.reshape(1, -1)))[0])
        maps[index] = (bright if bright.mean() < 0.5 else ~bright).astype(np.uint8)
    return maps, 2


def linear_probe(config: RunConfig, shard: Shard, sites: Sequence[Shard], seed: int) -> Maps:
    """Fit a linear classifier of the features to the sites' labels: a ceiling, not a method."""
    per_image = min(MOST_OF_AN_IMAGE, max(1, PIXELS // sum(map(len, sites))))
    drawn = []

    def opened(one: Shard) -> tuple[Segmenter, object, object]:
        model = fitted_to(config, one).model
        features = open_features(one, model, config.cache, one.path.parent / "cache")
        bare = Segmenter(nn.Identity(), torch.zeros(1, features.channels), Geometry.of(model))
        return bare, features, model

    for site in sites:
        bare, features, model = opened(site)
        drawn.append(sample_pixels(bare, features, site, model, seed=seed, per_image=per_image))  # type: ignore[arg-type]
    pixels = join_pixels(drawn)
    assert shard.classes is not None
    fit = fit_linear(pixels.codes, pixels.classes, shard.classes.num_classes)
    bare, features, model = opened(shard)
    found = evaluate_segmenter(LinearProbe(bare, fit), features, shard, model, keep=range(len(shard)))  # type: ignore[arg-type]
    return found.predictions, shard.classes.num_classes
