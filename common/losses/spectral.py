"""Spectral objective: the head and the first centroids in closed form, from sums over all patches.

`common.clustering.spectral` holds the arithmetic and its sources. Here is what of it a site sends, how that adds up,
how it is noised, and what the server makes of the total.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.clustering.spectral import (
    PatchScatter,
    pair_weights,
    pairs,
    patch_scatter,
    separating_projection,
    symmetric,
)
from common.features.source import Features, tokens_of
from common.losses.base import ClosedForm, NamedArrays, Shapes, ShapesOf, Sums
from common.settings.objectives import OBJECTIVES, ObjectiveFacts
from common.settings.schema import RunConfig
from common.settings.section import Section

# Factors of an image's mean feature, mean x x^T, mean difference of neighbors and mean pair weight where noise
# covers all four as one vector. Their usual lengths (CamVid: 0.37, 0.16, 0.011 and 0.20 of the feature norm's powers)
# are not what they are worth: the projection hangs on the two matrices, the shorter one most of all.
RELEASE_SCALES = {"total": 0.2, "outer": 1.0, "difference": 8.0, "weight": 0.1}

# keeps a share of pairs that is 0, or below it by noise, from being divided by
_TINY = 1e-8


class SpectralSettings(Section):
    """Settings ``loss.spectral``."""

    tolerance: float = Field(
        0.1, gt=0, description="color difference of like neighbors, in medians of the image"
    )
    ridge: float = Field(0.02, gt=0, description="share of the identity in the noise")
    whiten: float = Field(0.0, ge=0, le=1, description="0 weighs directions by signal to noise, 1 all alike")


@OBJECTIVES.register(
    "spectral",
    summary="linear head in closed form: directions that vary between regions, not between like neighbors",
    facts=ObjectiveFacts(settings=SpectralSettings, steps=False, clips=("clip_scatter", "feature_norm")),
)
class Spectral(ClosedForm):
    """One round of scatter sums for the projection; `axis_directions` are the first centroids."""

    kind = "scatter"

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.settings = config.loss.own(SpectralSettings)

    @classmethod
    def conflict(cls, config: RunConfig) -> str | None:
        """Name what the closed form has no room for."""
        model = config.model
        if model.nonlinear:
            return (
                "loss.objective 'spectral' finds a linear head but model.nonlinear is true; set it to false, or choose "
                "another objective"
            )
        if model.clusters > 2 * model.dim**2:
            return (
                f"loss.objective 'spectral' starts k-means from {2 * model.dim**2} directions of codes of length "
                f"{model.dim} but model.clusters is {model.clusters}; raise model.dim"
            )
        return None

    def site(self, features: Features) -> dict[str, np.ndarray]:
        """Return the scatter of a shard as it travels."""
        return patch_scatter(features, self.settings.tolerance).to_arrays()

    def image_sums(self, features: Features) -> Iterator[dict[str, NDArray[np.float64]]]:
        """Yield each image's mean feature over R, means of x x^T and w d d^T over R^2, and mean pair weight.

        Features longer than R = ``privacy.feature-norm`` are shortened to it. Each part is scaled by its factor of
        `RELEASE_SCALES`.
        """
        radius = self.config.privacy.feature_norm
        left, right = pairs(features.grid)
        triangle = np.triu_indices(features.channels)
        for index in range(len(features)):
            tokens = tokens_of(features, [index])[0].cpu().double()
            tokens = tokens / (tokens.norm(dim=1, keepdim=True) / radius).clamp(min=1) / radius
            colors = features.colours([index]).cpu()
            weights = pair_weights(colors, features.grid, self.settings.tolerance)[0]
            differences = (tokens[left] - tokens[right]) * weights.sqrt().unsqueeze(-1)
            means = {
                "total": tokens.mean(0).numpy(),
                "outer": (tokens.T @ tokens / len(tokens)).numpy()[triangle],
                "difference": (differences.T @ differences / len(weights)).numpy()[triangle],
                "weight": np.array([float(weights.mean())]),
            }
            yield {name: factor * means[name] for name, factor in RELEASE_SCALES.items()}

    def merge(self, parts: Sequence[NamedArrays]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Add up the sites' sums and solve for the linear head."""
        scatter = functools.reduce(operator.add, map(PatchScatter.from_arrays, parts))
        model = self.config.model
        try:
            weight, bias, _ = separating_projection(
                scatter, model.dim, self.settings.whiten, self.settings.ridge
            )
        except np.linalg.LinAlgError as error:
            raise ValueError(str(error)) from None
        head = {"linear.weight": weight.astype(np.float32), "linear.bias": bias.astype(np.float32)}
        return head, axis_directions(model.clusters, model.dim)

    def denoise(self, sums: Sums, units: int, patches: int, deviation: float) -> dict[str, np.ndarray]:
        """Return a scatter whose matrices have no negative eigenvalue.

        Directions in which neighbors differ by less than noise alone would (2 deviation sqrt(C), the edge of
        the semicircle law) count as different by that much.
        """
        radius = self.config.privacy.feature_norm
        means = {name: sums[name] / (factor * units) for name, factor in RELEASE_SCALES.items()}
        mean, channels = means["total"], len(means["total"])
        second = symmetric(means["outer"], channels)
        covariance = _floored(second - np.outer(mean, mean), 0.0)
        # no direction may win by an accident of the noise
        edge = 2 * deviation / (RELEASE_SCALES["difference"] * units) * np.sqrt(channels)
        share = max(float(means["weight"][0]), _TINY)
        difference = _floored(symmetric(means["difference"], channels), edge)
        count = float(patches)
        return PatchScatter(
            count,
            mean * radius * count,
            (covariance + np.outer(mean, mean)) * radius**2 * count,
            share * count,
            difference * radius**2 * count,
        ).to_arrays()

    @staticmethod
    def shapes(channels: int) -> Shapes:
        """Return the shapes of a scatter as it travels."""
        return PatchScatter.shapes(channels)

    @staticmethod
    def noisy_shapes(plain: ShapesOf) -> Shapes:
        """Return the shapes of the four means of an image."""
        triangle = plain["difference"]
        return {"total": plain["mean"], "outer": triangle, "difference": triangle, "weight": (1,)}

    @staticmethod
    def pack(arrays: NamedArrays) -> dict[str, np.ndarray]:
        """Return the sums behind a scatter as it travels, one triangle of the matrices."""
        scatter = PatchScatter.from_arrays(arrays)
        triangle = np.triu_indices(len(scatter.total))
        return {
            "total": scatter.total,
            "outer": scatter.outer[triangle],
            "difference": scatter.difference[triangle],
            "weights": np.array([scatter.count, scatter.weight]),
        }

    @staticmethod
    def unpack(sums: NamedArrays) -> dict[str, np.ndarray]:
        """Rebuild a scatter from its sums."""
        count, weight = (float(value) for value in sums["weights"])
        outer, difference = (symmetric(sums[key], len(sums["total"])) for key in ("outer", "difference"))
        return PatchScatter(count, sums["total"], outer, weight, difference).to_arrays(np.float64)

    @staticmethod
    def largest(patches: float, feature: float) -> dict[str, float]:
        """Return bounds on the sums behind a scatter."""
        return {
            "total": patches * feature,
            "outer": patches * feature**2,
            "difference": 2 * patches * (2 * feature) ** 2,  # at most two pairs a patch
            "weights": 2 * patches,
        }


def axis_directions(clusters: int, dim: int) -> np.ndarray:
    """Return K unit directions float32 [K, D] to start k-means from: both ends of the first axes.

    Codes have mean 0 and their axes are ordered by how well they separate, so that the ends of an axis lie in
    different things. Where there are more clusters than ends, diagonals between pairs of axes follow.
    """
    # there is no draw: federated and pooled k-means start, and hence end, alike
    axes = np.eye(dim)
    ends = [sign * axis for axis in axes for sign in (1.0, -1.0)]
    diagonals = (
        (first * axes[i] + second * axes[j]) / np.sqrt(2.0)
        for i, j in itertools.combinations(range(dim), 2)
        for first, second in itertools.product((1.0, -1.0), repeat=2)
    )
    found = list(itertools.islice(itertools.chain(ends, diagonals), clusters))
    assert len(found) == clusters, "checked with the settings"
    return np.array(found, dtype=np.float32)


def _floored(matrix: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Return the symmetric matrix with its eigenvalues raised to ``least``."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, least)) @ vectors.T)
