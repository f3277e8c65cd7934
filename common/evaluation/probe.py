"""Linear probe: what a classifier with labels can read off frozen codes.

The measure of a representation, not a way to train one: multinomial logistic regression on the codes of
labelled pixels. The published code trains a 1x1 convolution on codes enlarged to the size of the label; a
linear map and linear interpolation commute, so here scores are computed on the grid and enlarged, which is the
same at a fraction of the cost. Labels come in through `sample_pixels` and nowhere else; nothing here is
imported by training.

Shapes: B images, D code length, C classes, h x w the feature grid, H x W pixels, n sampled pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from common.data.classes import IGNORE
from common.data.manifest import Shard
from common.evaluation.clusters import ScoreAt, code_of, seen_label
from common.features.source import Features
from common.models.segmenter import Geometry, Segmenter, interpolation
from common.seeds import numpy_generator
from common.settings.unsupervised import Model

# Labelled pixels that a probe is fitted to, shared out evenly among the images ...
PIXELS = 100_000
# ... but no more than these of one image, whose pixels are much alike.
MOST_OF_AN_IMAGE = 1000
# Strength of the pull on the weights (of standardized codes) towards 0, which makes the fit unique.
RIDGE = 1e-4
# Score of a class that no pixel of the fit shows: finite, as scores are interpolated, and below all others.
_NEVER = -1e4


@dataclass(frozen=True)
class Pixels:
    """Codes float32 [n, D] of labelled pixels with their classes int64 [n], from so many ``images``."""

    codes: Tensor
    classes: Tensor
    images: int


@dataclass(frozen=True)
class LinearFit:
    """Weights [C, D] and bias [C] of a classifier of codes; ``loss`` is its mean cross entropy in nats."""

    weights: Tensor
    bias: Tensor
    loss: float
    steps: int


def codes_at(
    code: Tensor, geometry: Geometry, size: tuple[int, int], rows: Tensor, columns: Tensor
) -> Tensor:
    """Return the code [D, h, w] of one image at pixels (row, column) of its picture: float [n, D].

    ``size`` is the picture's (H, W); as `Segmenter.resize` would give them, without the full-size map.
    """
    down = torch.from_numpy(interpolation(code.shape[1], size[0], geometry.height, geometry.stride))
    across = torch.from_numpy(interpolation(code.shape[2], size[1], geometry.width, geometry.stride))
    weights = down[rows].to(code)[:, :, None] * across[columns].to(code)[:, None, :]
    return weights.flatten(1) @ code.flatten(1).T  # four weights of a row differ from 0; the grid is small


@torch.no_grad()
def sample_pixels(
    segmenter: Segmenter,
    features: Features,
    shard: Shard,
    model: Model,
    *,
    seed: int,
    per_image: int,
    score_at: ScoreAt = "label",
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Pixels:
    """Draw up to ``per_image`` labelled pixels of every labelled image of a shard, with their codes.

    All draws follow from the seed, the shard's name and the image's place in it. Label files are opened
    here.
    """
    codes: list[Tensor] = []
    classes: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(shard), batch):
        indices = list(range(start, min(start + batch, len(shard))))
        grids = code_of(segmenter, features, indices).cpu()
        for grid, index in zip(grids, indices, strict=True):
            label = seen_label(shard, index, model, score_at)
            if label is None:
                continue
            places = np.flatnonzero(label != IGNORE)
            drawn = numpy_generator(seed, "probe", shard.name, index).permutation(places)[:per_image]
            rows, columns = (torch.from_numpy(part) for part in np.divmod(drawn, label.shape[1]))
            size = (label.shape[0], label.shape[1])
            codes.append(codes_at(grid, segmenter.geometry, size, rows, columns))
            classes.append(label.ravel()[drawn].astype(np.int64))
        if progress is not None:
            progress(indices[-1] + 1, len(shard))
    parts = zip(codes, classes, strict=True)
    return join_pixels([Pixels(code, torch.from_numpy(found), 1) for code, found in parts])


def join_pixels(parts: Sequence[Pixels]) -> Pixels:
    """Join the pixels of several shards."""
    held = [part for part in parts if len(part.classes)]
    if not held:
        return Pixels(torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64), 0)
    return Pixels(
        torch.cat([part.codes for part in held]),
        torch.cat([part.classes for part in held]),
        sum(part.images for part in held),
    )


def fit_linear(codes: Tensor, classes: Tensor, num_classes: int, steps: int = 200) -> LinearFit:
    """Fit sklearn's multinomial logistic regression of classes int64 [n] on codes [n, D] by L-BFGS.

    Codes are standardized first (the result takes them as they are), weights start at 0, and all pixels
    count alike: the same input gives the same classifier. Stops earlier where nothing changes any more.
    At least two classes have to occur; one that does not occur is never predicted.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, spread = codes.mean(dim=0), codes.std(dim=0, correction=0).clamp(min=1e-6)
    inputs = ((codes - mean) / spread).double().numpy()
    present = np.unique(classes)
    # sklearn pulls on one column w of two classes where we pull on two, w / 2 and -w / 2: half as strongly
    strength = len(codes) * RIDGE / (2 if len(present) == 2 else 1)
    model = LogisticRegression(C=1 / strength, tol=1e-6, max_iter=steps)
    with warnings.catch_warnings():  # the number of steps is the caller's choice
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(inputs, classes.numpy())
    columns, offsets = model.coef_, model.intercept_
    if len(columns) == 1:
        columns, offsets = np.stack([-columns[0], columns[0]]) / 2, np.array([-offsets[0], offsets[0]]) / 2
    weights = torch.zeros(num_classes, codes.shape[1], dtype=torch.double)
    bias = torch.full((num_classes,), _NEVER, dtype=torch.double)
    weights[present], bias[present] = torch.from_numpy(columns), torch.from_numpy(offsets)
    loss = float(functional.cross_entropy(torch.from_numpy(inputs) @ weights.T + bias, classes))
    weights = weights / spread
    bias = bias - weights @ mean.double()
    return LinearFit(weights.float(), bias.float(), loss, int(model.n_iter_.max()))


class LinearProbe(Segmenter):
    """A segmenter whose clusters are classes: linear scores of a code stand in for cosines to centroids.

    So `common.evaluation.clusters.evaluate_segmenter` serves it as it is, but only the confusion means anything.
    """

    bias: Tensor

    def __init__(self, segmenter: Segmenter, fit: LinearFit) -> None:
        """Put a fitted classifier on the frozen codes of ``segmenter``."""
        super().__init__(segmenter.head, fit.weights, segmenter.geometry, upsample="cosines")
        self.register_buffer("bias", fit.bias.detach().clone())
        self.to(segmenter.centroids.device)

    def cosines(self, code: Tensor) -> Tensor:
        """Return the score [B, C, h, w] of each code [B, D, h, w] for each class."""
        return torch.einsum("bdhw,cd->bchw", code, self.centroids) + self.bias[:, None, None]
