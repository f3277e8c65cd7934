"""Does the fast CRF say what sums over all pairs of pixels say?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from common.evaluation.crf import (
    DEFAULT,
    CrfSettings,
    Lattice,
    _blur_along,
    _corners,
    _Smoothing,
    _with_meeting_places,
    mean_field,
    refine,
)


def direct_mean_field(unary: Tensor, image: np.ndarray, settings: CrfSettings = DEFAULT) -> Tensor:
    """The same model by N x N matrices, from the formulas."""
    clusters, height, width = unary.shape
    grid = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack(grid, dim=-1).reshape(-1, 2).double()
    colour = torch.from_numpy(image.copy()).reshape(-1, 3).double()
    far = torch.cdist(place, place).square()
    near = torch.exp(-far / (2 * settings.smooth_pixels**2))
    like = torch.cdist(colour, colour).square() / (2 * settings.bilateral_colour**2)
    joined = torch.exp(-far / (2 * settings.bilateral_pixels**2) - like)
    kernel = torch.zeros_like(near)
    for weight, one in ((settings.smooth_weight, near), (settings.bilateral_weight, joined)):
        scale = one.sum(dim=1).rsqrt()
        kernel += weight * scale.unsqueeze(1) * one * scale
    energy = unary.double().reshape(clusters, -1).T
    marginals = torch.softmax(-energy, dim=1)
    for _ in range(settings.iterations):
        marginals = torch.softmax(-energy + kernel @ marginals, dim=1)
    return marginals.T.reshape(clusters, height, width)


def scene(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture of rounded regions with shading, and the region of each pixel."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    centres = rng.uniform(0, 1, (7, 2)) * [height, width]
    region = np.argmin([(rows - r) ** 2 + (columns - c) ** 2 for r, c in centres], axis=0)
    colours = rng.uniform(30, 220, (7, 3))
    shading = 12 * np.sin(columns / 17)[..., None] + rng.normal(0, 2.5, (height, width, 1))
    return (colours[region] + shading).clip(0, 255).astype(np.uint8), region


def coarse_cosines(region: np.ndarray, clusters: int, seed: int, cell: int = 8) -> Tensor:
    """What a segmenter gives: cosines on a grid of cells, noisy and enlarged."""
    rng = np.random.default_rng(seed)
    truth = torch.from_numpy(np.eye(clusters)[region]).permute(2, 0, 1).unsqueeze(0).float()
    small = torch.nn.functional.avg_pool2d(truth, cell)
    small = small + torch.from_numpy(rng.normal(0, 0.15, small.shape)).float()
    size = region.shape
    return torch.nn.functional.interpolate(small, size=size, mode="bilinear")[0].clamp(-1, 1)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("sharpness", [2.0, 8.0])
def test_labels_agree_with_direct_sums(seed: int, sharpness: float) -> None:
    image, region = scene(48, 64, seed)
    unary = -torch.log_softmax(sharpness * coarse_cosines(region, 9, seed), dim=0)
    found, expected = mean_field(unary, image).argmax(0), direct_mean_field(unary, image).argmax(0)
    assert (expected != unary.argmin(0)).double().mean() > 0.03  # the CRF has something to do
    assert (found == expected).double().mean() > 0.99


@pytest.mark.shared
def test_photographs_agree_with_direct_sums(shared_data: Path) -> None:
    agreement = []
    for index, name in enumerate(sorted((shared_data / "camvid" / "dev" / "images").iterdir())[::20]):
        image = np.asarray(Image.open(name).resize((72, 54), Image.Resampling.BILINEAR))
        label = np.asarray(Image.open(str(name).replace("images", "labels").replace(".jpg", ".png")))
        region = np.asarray(Image.fromarray(label).resize((72, 54), Image.Resampling.NEAREST))
        unary = -torch.log_softmax(6 * coarse_cosines(region, 12, index, cell=9), dim=0)
        found, expected = mean_field(unary, image).argmax(0), direct_mean_field(unary, image).argmax(0)
        agreement.append(float((found == expected).double().mean()))
    assert np.mean(agreement) > 0.99, agreement


def test_boundary_moves_to_the_edge_of_the_picture_content() -> None:
    image = np.full((32, 48, 3), 60, dtype=np.uint8)
    image[:, 20:] = 180
    believed = torch.zeros(2, 32, 48)
    believed[0, :, :24], believed[1, :, 24:] = 0.6, 0.6  # four columns too far to the right
    labels = refine(believed, image)
    assert labels.dtype == np.uint8
    assert (labels[:, :20] == 0).all()
    assert (labels[:, 20:] == 1).all()


def test_large_pictures_are_refined_at_a_bounded_size() -> None:
    image, region = scene(48, 64, 5)
    cosines = coarse_cosines(region, 7, 5)
    full, bounded = refine(cosines, image), refine(cosines, image, CrfSettings(max_pixels=1000))
    assert bounded.shape == (48, 64)
    assert 0.85 < (full == bounded).mean() < 1


def test_without_weights_the_unary_decides() -> None:
    image, region = scene(24, 32, 3)
    cosines = coarse_cosines(region, 7, 3)
    nothing = CrfSettings(smooth_weight=0.0, bilateral_weight=0.0)
    assert np.array_equal(refine(cosines, image, nothing), cosines.argmax(0).numpy())
    assert not np.array_equal(refine(cosines, image), cosines.argmax(0).numpy())


def test_names_of_clusters_do_not_matter_and_runs_repeat() -> None:
    image, region = scene(24, 32, 4)
    cosines = coarse_cosines(region, 7, 4)
    order = torch.tensor([2, 0, 5, 6, 1, 4, 3])
    labels = refine(cosines, image)
    assert np.array_equal(order.numpy()[refine(cosines[order], image)], labels)
    torch.manual_seed(99)
    assert np.array_equal(refine(cosines, image), labels)


def test_marginals_are_probabilities_in_any_shape() -> None:
    for size in ((1, 40), (40, 1), (3, 2)):
        image = np.zeros((*size, 3), dtype=np.uint8)
        marginals = mean_field(torch.zeros(3, *size), image)
        torch.testing.assert_close(marginals, torch.full((3, *size), 1 / 3))


def test_picture_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the same size"):
        mean_field(torch.zeros(3, 4, 5), np.zeros((5, 4, 3), dtype=np.uint8))


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_corner_weights_are_barycentric(dimensions: int) -> None:
    points = 3 * torch.randn(500, dimensions, generator=torch.Generator().manual_seed(0))
    keys, weights, steps = _corners(points)
    assert keys.shape == weights.shape == (dimensions + 1, 500)
    assert float(weights.min()) > -1e-5
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(500))
    assert all(len(set(row.tolist())) == dimensions + 1 for row in keys.T)
    assert sum(steps) == 0  # one step in each direction leads back


def test_blur_joins_existing_neighbours_in_both_directions() -> None:
    corners = torch.tensor([0, 3, 4, 7, 20])
    rows, weights = _blur_along(corners, 4)
    blur = torch.zeros(5, 5).index_put_((torch.arange(5).unsqueeze(1).expand(5, 3), rows), weights, True)
    half = 0.5 * ((corners.unsqueeze(1) - corners).abs() == 4)  # 0-4 and 3-7
    torch.testing.assert_close(blur, torch.eye(5) + half)


def test_corners_exist_where_several_touched_ones_meet() -> None:
    steps = [10, 100]
    two, three = torch.tensor([90, 110]), torch.tensor([0, 90, 110])
    assert _with_meeting_places(two, steps).tolist() == [90, 110]
    assert _with_meeting_places(three, steps).tolist() == [0, 90, 100, 110]


def test_smoothing_is_a_gaussian_window_scaled_on_both_sides() -> None:
    grid = torch.stack(torch.meshgrid(torch.arange(7), torch.arange(9), indexing="ij"), dim=-1).view(-1, 2)
    kernel = torch.exp(-0.5 * torch.cdist(grid.double(), grid.double()).square())
    scale = kernel.sum(dim=1).rsqrt()
    values = torch.rand(63, 4, generator=torch.Generator().manual_seed(0))
    expected = (scale.unsqueeze(1) * kernel * scale) @ values.double()
    torch.testing.assert_close(
        _Smoothing(7, 9, 1.0, values.device)(values).double(), expected, rtol=2e-3, atol=1e-4
    )


def test_lattice_approximates_the_gaussian_and_backwards_is_its_transpose() -> None:
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(3000, 2, generator=generator) * 6  # dense: no corner is missing inside
    values = torch.sin(points @ torch.randn(2, 4, generator=generator))
    direct = torch.exp(-0.5 * torch.cdist(points, points) ** 2)
    expected = (direct @ values) / direct.sum(dim=1, keepdim=True)
    lattice = Lattice(points)
    found = lattice.filter(values) / lattice.filter(torch.ones(3000, 1))
    error = (found - expected).norm() / (expected - expected.mean(0)).norm()
    assert float(error) < 0.08
    other = torch.randn(3000, 4, generator=generator)
    one = (other * lattice.filter(values)).sum()
    back = (Lattice(points, backwards=True).filter(other) * values).sum()
    torch.testing.assert_close(one, back, rtol=1e-3, atol=1e-2 * float(one.abs()))


def test_far_points_do_not_meet_and_too_wide_spread_is_refused() -> None:
    points = torch.tensor([[0.0, 0.0], [50.0, 0.0]])
    filtered = Lattice(points).filter(torch.tensor([[1.0], [0.0]]))
    assert float(filtered[1]) == 0.0
    assert float(filtered[0]) > 0.0
    with pytest.raises(ValueError, match="spread too widely"):
        Lattice(torch.tensor([[0.0] * 5, [1e6] * 5]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_says_what_the_cpu_says() -> None:
    picture, region = scene(40, 56, 0)
    unary = -torch.log_softmax(12 * coarse_cosines(region, 5, 0), dim=0)
    expected, found = mean_field(unary, picture), mean_field(unary.cuda(), picture)
    assert found.is_cuda
    # a point on the border of two cells of the lattice may fall into either, by the last bit
    assert (found.cpu() - expected).abs().mean() < 1e-3
    assert (found.cpu().argmax(dim=0) == expected.argmax(dim=0)).float().mean() > 0.995
