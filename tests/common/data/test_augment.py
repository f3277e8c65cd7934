"""Do views look as they should, and do their patches lie where they say?"""

from __future__ import annotations

import pytest
import torch

from common.data.augment import Augmentation
from common.losses.sampling import bilinear, gather


def ramp(high: int = 24, wide: int = 36) -> torch.Tensor:
    """Red is x and green is y, as fractions of the picture; blue is a constant."""
    x = ((torch.arange(wide) + 0.5) / wide).expand(high, wide)
    y = ((torch.arange(high) + 0.5) / high)[:, None].expand(high, wide)
    return torch.stack([x, y, torch.full((high, wide), 0.5)])


def test_the_identity_changes_nothing() -> None:
    torch.testing.assert_close(Augmentation().apply(ramp()), ramp(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_crop_shows_the_right_part(mirrored: bool) -> None:
    view = Augmentation(left=0.25, top=0.1, width=0.5, height=0.8, mirrored=mirrored).apply(ramp())
    red = view[0].flip(1) if mirrored else view[0]
    expected_x = 0.25 + 0.5 * (torch.arange(36) + 0.5) / 36
    expected_y = 0.1 + 0.8 * (torch.arange(24) + 0.5) / 24
    torch.testing.assert_close(red, expected_x.expand(24, 36), atol=1e-5, rtol=0)
    torch.testing.assert_close(view[1], expected_y[:, None].expand(24, 36), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("tiled", [True, False])
def test_places_point_at_what_the_view_shows(tiled: bool, mirrored: bool) -> None:
    """Sample the picture's own patch values at the places: the same as the patch values of the view."""
    augmentation = Augmentation(left=0.2, top=0.15, width=0.6, height=0.7, mirrored=mirrored)
    grid = (6, 9)

    def patches(picture: torch.Tensor) -> torch.Tensor:
        if tiled:
            return torch.nn.functional.avg_pool2d(picture[None], 4)[0].flatten(1).T
        rows, columns = torch.linspace(-1, 1, 6), torch.linspace(-1, 1, 9)
        where = torch.stack([columns.expand(6, 9), rows[:, None].expand(6, 9)], dim=-1)
        sampled = torch.nn.functional.grid_sample(
            picture[None], where[None], align_corners=False, padding_mode="border"
        )
        return sampled[0].flatten(1).T

    places = augmentation.places(grid, tiled)
    found = gather(patches(ramp())[None], *bilinear(places[None], grid))[0]
    expected = patches(augmentation.apply(ramp()))
    torch.testing.assert_close(found[:, :2], expected[:, :2], atol=0.02, rtol=0)


def test_draws_follow_from_seed_image_and_view_and_stay_in_range() -> None:
    drawn = [Augmentation.draw(0, image, view) for image in range(40) for view in range(3)]
    assert drawn == [Augmentation.draw(0, image, view) for image in range(40) for view in range(3)]
    assert len(set(drawn)) == len(drawn)
    assert Augmentation.draw(1, 0, 0) != drawn[0]
    for a in drawn:
        assert a.left >= 0 and a.top >= 0 and a.left + a.width <= 1 + 1e-9 and a.top + a.height <= 1 + 1e-9
        assert 0.6 < a.width * a.height <= 1
    assert {a.mirrored for a in drawn} == {a.grey for a in drawn} == {True, False}
    assert 0.3 < sum(a.blur > 0 for a in drawn) / len(drawn) < 0.7


def test_colour_changes_by_hand() -> None:
    picture = torch.tensor([0.8, 0.4, 0.2]).view(3, 1, 1).expand(3, 6, 6).contiguous()
    luma = 0.299 * 0.8 + 0.587 * 0.4 + 0.114 * 0.2
    assert Augmentation(brightness=0.5).apply(picture)[:, 0, 0].tolist() == pytest.approx([0.4, 0.2, 0.1])
    grey = Augmentation(grey=True).apply(picture)
    assert grey[:, 3, 3].tolist() == pytest.approx([luma] * 3, abs=1e-6)
    washed = Augmentation(saturation=0.5).apply(picture)[0, 0, 0]
    assert float(washed) == pytest.approx((0.8 + luma) / 2, abs=1e-6)
    turned = Augmentation(hue=0.1).apply(picture)[:, 0, 0]
    assert float(turned @ torch.tensor([0.299, 0.587, 0.114])) == pytest.approx(luma, abs=1e-3)
    assert not torch.allclose(turned, picture[:, 0, 0], atol=0.05)


def test_blur_smooths_and_keeps_the_mean() -> None:
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    blurred = Augmentation(blur=1.5).apply(picture)
    assert float(blurred.std()) < 0.6 * float(picture.std())
    assert float(blurred.mean()) == pytest.approx(float(picture.mean()), abs=0.02)


@pytest.mark.parametrize("view", range(4))
def test_views_stay_pictures(view: int) -> None:
    picture = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    found = Augmentation.draw(3, 0, view).apply(picture)
    assert found.shape == picture.shape and float(found.min()) >= 0 and float(found.max()) <= 1
