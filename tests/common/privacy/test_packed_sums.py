"""Is the total of the sites' summands the update that one site with all images would send?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common.clustering.spectral import PatchScatter
from common.privacy.packed_sums import pack, pack_sums, packed_shapes, unpack, unpack_sums
from server.aggregation.heads import weighted_mean

RNG = np.random.default_rng(0)


def site(images: int) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, float], float]:
    groups: dict[str, dict[str, np.ndarray]] = {
        "head": {"w": RNG.normal(size=(3, 4)).astype(np.float32), "b": RNG.normal(size=3).astype(np.float32)},
        "centroids": {
            "centroids": RNG.normal(size=(2, 3)).astype(np.float32),
            "counts": RNG.integers(0, 99, 2),
        },
        "sums": {"sums": RNG.normal(size=(2, 3)), "counts": RNG.integers(0, 99, 2)},
    }
    return groups, {"loss": float(RNG.normal())}, float(images)


def shapes_of(groups: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, tuple[int, ...]]]:
    return {name: {key: value.shape for key, value in arrays.items()} for name, arrays in groups.items()}


def total_of(sites: list[Any]) -> Any:
    shapes = packed_shapes(shapes_of(sites[0][0]))
    vector = sum(pack(pack_sums(*one)) for one in sites)
    return unpack_sums(unpack(np.asarray(vector), shapes), len(sites))


def test_the_total_holds_weighted_means_and_plain_sums() -> None:
    sites = [site(n) for n in (3, 10, 1)]
    found = total_of(sites)
    for group in ("head", "centroids"):
        plain = weighted_mean(
            {str(i): {k: v for k, v in s[0][group].items() if k != "counts"} for i, s in enumerate(sites)},
            {str(i): s[2] for i, s in enumerate(sites)},
        )
        for key, value in plain.items():
            assert np.allclose(found.groups[group][key], value, rtol=1e-6)
            assert found.groups[group][key].dtype == np.float32
    assert np.allclose(found.groups["sums"]["sums"], sum(s[0]["sums"]["sums"] for s in sites))
    for group in ("sums", "centroids"):
        assert np.array_equal(found.groups[group]["counts"], sum(s[0][group]["counts"] for s in sites))
    assert found.metrics["loss"] == pytest.approx(sum(s[1]["loss"] * s[2] for s in sites) / 14)
    assert found.weight == 14


def scatter(patches: int, channels: int = 5) -> PatchScatter:
    x = RNG.normal(size=(patches, channels)) + 2
    d = RNG.normal(size=(patches, channels)) * 0.1
    return PatchScatter(patches, x.sum(0), x.T @ x, 0.7 * patches, d.T @ d)


def test_scatters_add_up_to_that_of_all_patches() -> None:
    parts = [scatter(n) for n in (40, 7, 90)]
    sites: list[Any] = [({"scatter": part.to_arrays()}, {}, 1.0) for part in parts]
    shapes = {"scatter": PatchScatter.shapes(5)}
    assert shapes_of({"scatter": parts[0].to_arrays()}) == shapes
    found = total_of(sites).groups["scatter"]
    expected = (parts[0] + parts[1] + parts[2]).to_arrays()
    for key, value in expected.items():
        assert np.allclose(found[key], value, rtol=1e-5, atol=1e-6), key


def test_a_vector_of_another_length_is_refused() -> None:
    shapes = packed_shapes(shapes_of(site(1)[0]))
    with pytest.raises(ValueError, match="numbers"):
        unpack(np.zeros(7), shapes)


def test_weights_that_add_up_to_nothing_are_refused() -> None:
    groups, metrics, _ = site(1)
    with pytest.raises(ValueError, match="add up to 0"):
        total_of([(groups, metrics, 0.0)])
