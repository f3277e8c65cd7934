"""Do totals with noise become something that the merge rules can use, and truer ones with less noise?"""

from __future__ import annotations

import numpy as np
import pytest

from common.clustering.spectral import PatchScatter, separating_projection
from common.losses.spectral import RELEASE_SCALES
from common.settings.privacy import Privacy
from common.settings.schema import RunConfig
from server.privacy.denoising import NoisyTotal, clean_groups, clean_sums

RNG = np.random.default_rng(0)


def test_clusters_of_pure_noise_are_empty_and_counts_are_possible() -> None:
    sums = RNG.normal(size=(400, 24))
    sums[:10] += 40
    counts = RNG.normal(size=400) + 3
    found = clean_sums(sums, counts, 1.0, 0)
    alive = found["counts"] > 0
    assert alive[:10].all()
    assert alive[10:].mean() < 0.03
    assert (np.linalg.norm(found["sums"], axis=1) <= found["counts"] + 1e-9).all()


def test_small_totals_are_cleared() -> None:
    sums = np.array([[30.0, 0.0], [30.0, 0.0]])
    found = clean_sums(sums, np.array([31.0, 99.0]), 0.1, 50)
    assert found["counts"].tolist() == [0, 99]


def noisy_scatter(
    deviation: float, images: int = 400, channels: int = 12
) -> tuple[PatchScatter, PatchScatter]:
    x = RNG.normal(size=(images, channels)) * np.linspace(1, 3, channels)
    d = RNG.normal(size=(images, channels)) * 0.3
    exact = PatchScatter(images, x.sum(0), x.T @ x, images, d.T @ d)
    triangle, radius, privacy = (
        np.triu_indices(channels),
        10.0,
        Privacy(unit="image", clip_scatter=1.0, feature_norm=10.0),
    )
    totals = {
        "scatter/total": exact.total / radius,
        "scatter/outer": exact.outer[triangle] / radius**2,
        "scatter/difference": exact.difference[triangle] / radius**2,
        "scatter/weight": np.array([float(images)]),
    }
    for name, factor in RELEASE_SCALES.items():
        totals[f"scatter/{name}"] = factor * totals[f"scatter/{name}"]
    totals = {name: value + deviation * RNG.normal(size=value.shape) for name, value in totals.items()}
    groups = clean_groups(NoisyTotal(totals, 4, images, 1, deviation), RunConfig(privacy=privacy))
    return exact, PatchScatter.from_arrays(groups["scatter"])


def test_without_noise_the_scatter_is_the_exact_one() -> None:
    exact, found = noisy_scatter(0.0)
    for name in ("total", "outer", "difference"):
        assert np.allclose(getattr(found, name), getattr(exact, name), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("deviation", [0.1, 1.0, 30.0])
def test_noise_never_breaks_the_projection(deviation: float) -> None:
    _, found = noisy_scatter(deviation)
    weight, bias, values = separating_projection(found, 4)
    assert np.isfinite(weight).all() and np.isfinite(bias).all() and (values > 0).all()
    assert np.linalg.eigvalsh(found.difference).min() >= -1e-6 * np.linalg.eigvalsh(found.difference).max()


def test_heads_are_averaged_over_sites() -> None:
    totals = {"head/w": np.array([4.0, 8.0]), "sums/sums": np.ones((1, 2)), "sums/counts": np.ones(1)}
    privacy = Privacy(clip_sums=1.0)
    groups = clean_groups(
        NoisyTotal(totals, sites=4, images=40, patches=10, deviation=0.0), RunConfig(privacy=privacy)
    )
    assert groups["head"]["w"].tolist() == [1.0, 2.0]
    assert groups["sums"]["counts"].tolist() == [100 * np.sqrt(2)]  # 40 images of 10 patches, over 4 sites
