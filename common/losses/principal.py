"""Principal objective: the head is the principal axes of all patches, from sums; centroids start along them.

Channels are standardized over all sites first, so that the axes are those of the correlation matrix; codes keep the
standard deviation of each axis. Clusters are then found among many starts (`centroids.starts`), which are drawn as
codes spread, without any image.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from common.clustering.kmeans import plus_plus, unit_rows
from common.clustering.spectral import PatchScatter, patch_moments, symmetric
from common.features.source import Features
from common.losses.base import ClosedForm, NamedArrays, Shapes, ShapesOf, Sums
from common.seeds import numpy_generator
from common.settings.objectives import OBJECTIVES, ObjectiveFacts
from common.settings.schema import RunConfig

_NO_NOISE = "the sums that choose among starts have no form with noise"
# made-up codes that stand for those of the images: CamVid 39.1 +- 1.4 from these, 39.9 +- 3.0 from plain draws, 38.2
# +- 2.1 from k-means++ on the codes themselves
_DRAWS = 2000
# channels whose deviation is below this share of the largest never change, and say nothing
_DEAD = 1e-6


@OBJECTIVES.register(
    "principal",
    summary="linear head in closed form: the principal axes of standardized features; starts drawn along them",
    facts=ObjectiveFacts(steps=False, starts=True),
)
class Principal(ClosedForm):
    """One round of first and second moments for the axes; `drawn_starts` are the first centroids."""

    kind = "moments"

    @classmethod
    def conflict(cls, config: RunConfig) -> str | None:
        """Name what the closed form has no room for."""
        model, centroids = config.model, config.centroids
        if model.nonlinear:
            return (
                "loss.objective 'principal' finds a linear head but model.nonlinear is true; set it to false, or "
                "choose another objective"
            )
        if 0 < centroids.over < model.clusters:
            return (
                f"centroids.over is {centroids.over}, fewer than the {model.clusters} clusters that are to be left; "
                "raise it to several times model.clusters, or set it to 0"
            )
        if config.privacy.noise_multiplier:
            return (
                f"privacy.noise-multiplier is set, but loss.objective is 'principal' and {_NO_NOISE}; set it to 0, "
                "or choose objective 'spectral'"
            )
        if centroids.share != "both":
            return (
                f"loss.objective 'principal' fits one model to all sites but centroids.share is '{centroids.share}'; "
                "set it to 'both', or choose another objective"
            )
        return None

    def site(self, features: Features) -> dict[str, np.ndarray]:
        """Return the moments of a shard as they travel, in float64: near axes turn with the last digits."""
        return _plain(patch_moments(features))

    def image_sums(self, features: Features) -> Iterator[dict[str, NDArray[np.float64]]]:
        """Refuse: starts are compared by figures that have no form with noise (see `conflict`)."""
        raise ValueError(_NO_NOISE)

    def merge(self, parts: Sequence[NamedArrays]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Add up the sites' moments; return the linear head and all starts [S, M, D]."""
        moments = functools.reduce(operator.add, map(_moments, parts))
        weight, bias, variances = principal_axes(moments, self.config.model.dim)
        head = {"linear.weight": weight.astype(np.float32), "linear.bias": bias.astype(np.float32)}
        return head, drawn_starts(np.sqrt(variances), self.config)

    def denoise(self, sums: Sums, units: int, patches: int, deviation: float) -> dict[str, np.ndarray]:
        """Refuse, as `image_sums` does."""
        raise ValueError(_NO_NOISE)

    @staticmethod
    def shapes(channels: int) -> Shapes:
        """Return the shapes of the moments as they travel."""
        return {name: shape for name, shape in PatchScatter.shapes(channels).items() if name != "difference"}

    @staticmethod
    def noisy_shapes(plain: ShapesOf) -> Shapes:
        """Refuse, as `image_sums` does."""
        raise ValueError(_NO_NOISE)

    @staticmethod
    def packed_shapes(plain: ShapesOf) -> Shapes:
        """Return the shapes of the sums behind the moments."""
        return {"total": plain["mean"], "outer": plain["correlation"], "weights": (1,)}

    @staticmethod
    def pack(arrays: NamedArrays) -> dict[str, np.ndarray]:
        """Return the sums behind the moments, one triangle of the matrix."""
        moments = _moments(arrays)
        triangle = np.triu_indices(len(moments.total))
        return {
            "total": moments.total,
            "outer": moments.outer[triangle],
            "weights": np.array([moments.count]),
        }

    @staticmethod
    def unpack(sums: NamedArrays) -> dict[str, np.ndarray]:
        """Rebuild the moments from their sums."""
        outer = symmetric(sums["outer"], len(sums["total"]))
        return _plain(_of_sums(float(sums["weights"][0]), sums["total"], outer))

    @staticmethod
    def largest(patches: float, feature: float) -> dict[str, float]:
        """Return bounds on the sums behind the moments."""
        return {"total": patches * feature, "outer": patches * feature**2, "weights": patches}


def principal_axes(
    moments: PatchScatter, dim: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return weight [D, C] and bias [D] onto the first axes of standardized channels, and their variances [D].

    Codes have mean 0 over all patches. Raises ValueError for more axes than channels, and sums that are not finite.
    """
    channels = len(moments.total)
    if dim > channels:
        raise ValueError(
            f"{dim} directions were asked for but features have {channels} channels; lower model.dim."
        )
    mean = moments.total / moments.count
    covariance = moments.outer / moments.count - np.outer(mean, mean)
    if not np.isfinite(covariance).all():
        raise ValueError("The sums of the patches are not finite; a site's features are broken.")
    scale = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    dead = scale <= _DEAD * scale.max(initial=0.0)
    scale = np.where(dead, 1.0, scale)
    correlation = covariance / np.outer(scale, scale)
    correlation[dead], correlation[:, dead] = 0.0, 0.0
    values, vectors = np.linalg.eigh(correlation)
    values, vectors = np.maximum(values[::-1][:dim], 0.0), vectors[:, ::-1][:, :dim]
    strongest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[strongest, np.arange(dim)])  # eigenvectors have no sign of their own
    weight = (vectors / scale[:, None]).T
    return weight, -weight @ mean, values


def drawn_starts(deviations: NDArray[np.float64], config: RunConfig) -> NDArray[np.float32]:
    """Return R sets of M unit directions float32 [S, M, D], drawn by the seed as codes of these deviations spread.

    They are chosen among many such draws as k-means++ chooses among codes (Arthur and Vassilvitskii, 2007), and ask
    nothing of any image beyond the moments: federated and pooled k-means start alike. Every family of
    ``config.centerings`` gets the same ones, one after the other.
    """
    # few images make few kinds of images: they are found directly, where patches are clustered finely and joined
    joined = config.centroids.over if config.things.each_picture == "several" else 0
    clusters = joined or config.fitted_clusters
    starts = []
    for index in range(config.centroids.starts):
        generator = numpy_generator(config.seed, "starts", index)
        draws = generator.standard_normal((max(_DRAWS, 4 * clusters), len(deviations))) * deviations
        units = unit_rows(draws)
        starts.append(units[plus_plus(units, clusters, generator)])
    return np.stack(starts * len(config.centerings)).astype(np.float32)


def _plain(moments: PatchScatter) -> dict[str, np.ndarray]:
    arrays = moments.to_arrays(np.float64)
    del arrays["difference"]
    return arrays


def _moments(arrays: NamedArrays) -> PatchScatter:
    return PatchScatter.from_arrays({**arrays, "difference": np.zeros(len(arrays["correlation"]))})


def _of_sums(count: float, total: NDArray[np.float64], outer: NDArray[np.float64]) -> PatchScatter:
    return PatchScatter(count, total, outer, 0.0, np.zeros_like(outer))
