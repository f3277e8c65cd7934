"""Do image and label change together, by the right amount, and by nothing but the given generator?"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from common.data.transforms import (
    STRETCH,
    JointTransform,
    TransformDraws,
    draw_decisions,
    eval_image,
    image_tensor,
    mirror,
    recolour,
    resize,
    rotate,
    share_of_area,
    window,
)
from common.seeds import torch_generator
from common.settings.network import Transforms

ALONE: dict[str, dict[str, Any]] = {
    "resize": {"resize_height": 50, "resize_width": 70},
    "scale": {"scale_min": 0.6, "scale_max": 0.9},
    "rotation": {"rotation": 40.0},
    "random crop": {"crop": "random", "height": 32, "width": 40},
    "resized crop": {"crop": "resized", "height": 32, "width": 40},
    "flip": {"flip": 1.0},
    "jitter": {"jitter": 0.4},
}
COLOURS = {"jitter"}


def settings(**given: Any) -> Transforms:
    return Transforms.model_validate({"crop": "none"} | given)


def scene(height: int = 48, width: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of 16 pixels whose value in the image is 30 times their class 1..6 in the label."""
    rows, columns = torch.arange(height)[:, None] // 16, torch.arange(width) // 16
    label = ((rows * 5 + columns * 2) % 6 + 1).to(torch.uint8)
    return (label * 30).expand(3, height, width).clone(), label


def places(height: int, width: int) -> torch.Tensor:
    """An image that says where each pixel comes from: red is the row + 1, green the column + 1."""
    rows, columns = torch.arange(1, height + 1), torch.arange(1, width + 1)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return torch.cat([grid, torch.full((1, height, width), 9)]).to(torch.uint8)


def coloured(height: int = 48, width: int = 64) -> torch.Tensor:
    generator = torch_generator(0, "noise")
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def test_neutral_settings_change_nothing() -> None:
    image, label = coloured(), scene()[1]
    for seed in range(3):
        changed, changed_label = JointTransform(settings())(image, label, torch_generator(seed))
        assert torch.equal(changed, image)
        assert changed_label is not None and torch.equal(changed_label, label)


@pytest.mark.parametrize("name", ALONE)
def test_each_transform_works_alone(name: str) -> None:
    image, label = coloured(), scene()[1]
    changed, changed_label = JointTransform(settings(**ALONE[name]))(image, label, torch_generator(1))
    assert changed.dtype == torch.uint8 and changed_label is not None and changed_label.dtype == torch.uint8
    assert changed.shape != image.shape or not torch.equal(changed, image)
    assert torch.equal(changed_label, label) if name in COLOURS else not torch.equal(changed_label, label)
    if "crop" in name:
        assert changed.shape[1:] == (32, 40)


@pytest.mark.parametrize("name", sorted(set(ALONE) - COLOURS))
def test_the_label_stays_on_its_image(name: str) -> None:
    transform = JointTransform(settings(**ALONE[name]))
    for seed in range(6):
        changed, label = transform(*scene(), torch_generator(seed))
        assert label is not None and label.shape == changed.shape[1:]
        expected = torch.where(label == 255, 0, label.int() * 30)
        agree = (changed[0].int() - expected).abs() <= 15
        assert agree.float().mean() > 0.9  # all but the seams, where the image is interpolated


@pytest.mark.parametrize("factor", [(2, 2), (0.5, 0.5), (3, 1)])
def test_resized_labels_do_not_drift(factor: tuple[float, float]) -> None:
    """The middle of a symmetric label stays in the middle."""
    label = torch.zeros(24, 40, dtype=torch.uint8)
    label[8:16, 12:28] = 1
    _, resized = resize(
        (torch.zeros(3, 24, 40, dtype=torch.uint8), label), int(24 * factor[0]), int(40 * factor[1])
    )
    assert resized is not None
    assert torch.equal(resized, resized.flip(0)) and torch.equal(resized, resized.flip(1))
    assert int(resized.sum()) == int(128 * factor[0] * factor[1])


def test_shrinking_an_image_averages() -> None:
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[:, :, ::4] = 200  # stripes that sampling at every 4th pixel misses
    small, _ = resize((image, None), 8, 8)
    assert (small[:, :, 1:-1].int() - 50).abs().max() <= 2


def test_a_random_crop_is_a_slice_and_reaches_every_place() -> None:
    image = places(36, 50)
    transform = JointTransform(settings(crop="random", height=32, width=47))
    found = set()
    for seed in range(150):
        cut, label = transform(image, image[0].clone(), torch_generator(seed))
        top, left = int(cut[0, 0, 0]) - 1, int(cut[1, 0, 0]) - 1
        assert torch.equal(cut, image[:, top : top + 32, left : left + 47])
        assert label is not None and torch.equal(label, cut[0])
        found.add((top, left))
    assert found == {(top, left) for top in range(5) for left in range(4)}


def test_a_crop_larger_than_the_image_is_filled_around_it() -> None:
    image, label = torch.full((3, 20, 30), 7, dtype=torch.uint8), torch.zeros(20, 30, dtype=torch.uint8)
    transform = JointTransform(settings(crop="random", height=40, width=32))
    tops = set()
    for seed in range(60):
        padded, marks = transform(image, label, torch_generator(seed))
        assert marks is not None and padded.shape == (3, 40, 32)
        shown = marks == 0
        assert int(shown.sum()) == 20 * 30 and bool((marks[~shown] == 255).all())
        assert bool((padded[:, shown] == 7).all()) and bool((padded[:, ~shown] == 0).all())
        tops.add(int(shown.any(1).nonzero()[0]))
    assert min(tops) == 0 and max(tops) == 20


def test_a_window_may_cut_one_side_and_pad_the_other() -> None:
    image = places(4, 6)
    cut, label = window((image, image[1].clone()), 1, -2, 3, 5)
    assert label is not None and cut[0].tolist() == [[0, 0, r, r, r] for r in (2, 3, 4)]
    assert label.tolist() == [[255, 255, 1, 2, 3]] * 3


@pytest.mark.parametrize("size", [(48, 64), (1052, 1914), (300, 60), (33, 33)])
def test_a_resized_crop_has_the_share_that_was_asked_for(size: tuple[int, int]) -> None:
    high, wide = size
    for share in (0.25, 0.5, 0.8, 1.0):
        for proportions in (0.5, 1.0, 1.8, 2.4):
            height, width = share_of_area(size, share, proportions)
            assert 0 < height <= high and 0 < width <= wide
            assert height * width == pytest.approx(share * high * wide, abs=(height + width) / 2 + 1)
            if math.sqrt(share * high * wide * proportions) <= wide and height < high:
                assert width / height == pytest.approx(proportions, rel=(1 / height + 1 / width))
    assert share_of_area(size, 1.0, 1.3) == size


def test_resized_crops_of_small_shares_keep_proportions_within_the_stretch() -> None:
    transform = JointTransform(settings(crop="resized", height=32, width=64, area_min=0.1, area_max=0.3))
    image = places(200, 250)
    stretches = []
    for seed in range(40):
        cut, _ = transform(image, None, torch_generator(seed))
        rows = (int(cut[0, -1].int().max()) - int(cut[0, 0].int().min()) + 1) / 32
        columns = (int(cut[1, :, -1].int().max()) - int(cut[1, :, 0].int().min()) + 1) / 64
        stretches.append(columns / rows)
    assert 1 / STRETCH - 0.05 < min(stretches) < 0.85 and 1.2 < max(stretches) < STRETCH + 0.05


def test_scale_covers_its_range_and_composes_with_the_fixed_size() -> None:
    transform = JointTransform(settings(resize_height=100, resize_width=200, scale_min=0.5, scale_max=1.5))
    heights = []
    for seed in range(60):
        changed, _ = transform(*scene(), torch_generator(seed))
        assert abs(changed.shape[2] - 2 * changed.shape[1]) <= 1
        heights.append(changed.shape[1])
    assert 50 <= min(heights) < 60 and 140 < max(heights) <= 150


def test_quarter_turns_are_exact() -> None:
    image, label = (
        coloured(40, 40),
        torch.randint(0, 9, (40, 40), generator=torch_generator(0), dtype=torch.uint8),
    )
    for quarters in (1, 2, 3):
        turned, turned_label = rotate((image, label), 90.0 * quarters)
        assert torch.equal(turned, torch.rot90(image, quarters, (1, 2)))
        assert turned_label is not None and torch.equal(turned_label, torch.rot90(label, quarters))


def test_corners_of_a_turned_image_are_empty() -> None:
    image, label = torch.full((3, 60, 60), 200, dtype=torch.uint8), torch.full((60, 60), 3, dtype=torch.uint8)
    turned, marks = rotate((image, label), 45.0)
    assert marks is not None and set(marks.unique().tolist()) == {3, 255}
    assert marks[0, 0] == marks[-1, -1] == 255 and marks[30, 30] == 3
    rows, columns = torch.meshgrid(torch.arange(60) - 29.5, torch.arange(60) - 29.5, indexing="ij")
    inside = (rows.abs() + columns.abs()) <= 30 * math.sqrt(2)
    assert ((marks == 3) == inside).float().mean() > 0.99
    assert bool((turned[:, (rows.abs() + columns.abs()) > 45] == 0).all())


def test_angles_cover_both_signs_up_to_the_largest() -> None:
    """A dot at the right rim shows the angle."""
    angles = []
    image = torch.zeros(3, 101, 101, dtype=torch.uint8)
    image[:, 48:53, 88:93] = 255
    for seed in range(60):
        turned, _ = JointTransform(settings(rotation=30.0))(image, None, torch_generator(seed))
        row, column = (turned[0] > 128).nonzero().double().mean(0).tolist()
        angles.append(math.degrees(math.atan2(50 - row, column - 50)))
    assert -31 < min(angles) < -22 and 22 < max(angles) < 31


def test_half_of_the_images_are_mirrored() -> None:
    image, label = scene()
    transform, mirrored = JointTransform(settings(flip=0.5)), 0
    for seed in range(200):
        changed, changed_label = transform(image, label, torch_generator(seed))
        assert changed_label is not None
        flipped = torch.equal(changed, image.flip(2))
        assert flipped or torch.equal(changed, image)
        assert torch.equal(changed_label, label.flip(1) if flipped else label)
        mirrored += flipped
    assert 75 <= mirrored <= 125
    again = mirror(mirror((image, label)))
    assert again[1] is not None and torch.equal(again[0], image) and torch.equal(again[1], label)


def test_older_decisions_keep_their_numbers() -> None:
    """Figures were measured with fourteen decisions, of which four are gone: the others drew the same."""
    older = torch.rand(14, generator=torch_generator(5), dtype=torch.float64).tolist()
    assert list(draw_decisions(torch_generator(5))) == older[:10]


def test_colour_factors_by_hand() -> None:
    image = torch.tensor([[[100, 200]], [[100, 100]], [[100, 0]]], dtype=torch.uint8)
    grey = torch.tensor([0.2989, 0.587, 0.114])  # ITU-R 601
    assert recolour(image, 1.2, 1.0, 1.0)[:, 0].T.tolist() == [[120, 120, 120], [240, 120, 0]]
    luma = (image.float() * grey[:, None, None]).sum(0)
    for name, base in [("contrast", luma.mean()), ("saturation", luma)]:
        factors = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0} | {name: 0.5}
        expected = base + 0.5 * (image.float() - base)
        torch.testing.assert_close(recolour(image, **factors).float(), expected, atol=1.0, rtol=0)
    assert torch.equal(recolour(coloured(), 1.0, 1.0, 1.0), coloured())


def test_jitter_stays_within_its_share() -> None:
    image = torch.full((3, 40, 40), 100, dtype=torch.uint8)  # grey and flat: brightness alone shows
    seen = [
        int(JointTransform(settings(jitter=0.3))(image, None, torch_generator(seed))[0][0, 0, 0])
        for seed in range(80)
    ]
    assert 70 <= min(seen) < 80 and 120 < max(seen) <= 130


@pytest.mark.parametrize("seed", [0, 1])
def test_only_the_given_generator_is_used(seed: int) -> None:
    everything = settings(**ALONE["scale"], **ALONE["resized crop"], rotation=20.0, flip=0.5, jitter=0.4)
    image, label = coloured(), scene()[1]
    state = torch.random.get_rng_state()
    first = JointTransform(everything)(image, label, torch_generator(seed))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    second = JointTransform(everything)(image, label, torch_generator(seed))
    other = JointTransform(everything)(image, label, torch_generator(seed + 10))
    assert first[1] is not None and second[1] is not None
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


def test_switching_one_on_leaves_the_draws_of_the_others() -> None:
    image = places(60, 80)
    crop = {"crop": "random", "height": 32, "width": 40}
    plain, _ = JointTransform(settings(**crop))(image, None, torch_generator(3))
    mirrored, _ = JointTransform(settings(**crop, flip=1.0, scale_max=1.0))(image, None, torch_generator(3))
    assert torch.equal(mirrored, plain.flip(2))
    generator = torch_generator(3)
    drawn = draw_decisions(generator)
    assert len(set(drawn)) == len(TransformDraws._fields) and all(0 <= number < 1 for number in drawn)


def test_without_a_label_the_image_is_the_same() -> None:
    transform = JointTransform(settings(**ALONE["scale"], rotation=15.0, crop="random", height=40, width=40))
    image, label = scene()
    with_label, _ = transform(image, label, torch_generator(5))
    without, none = transform(image, None, torch_generator(5))
    assert none is None and torch.equal(with_label, without)


def test_scoring_sees_the_disk_size_or_a_fixed_one() -> None:
    image = coloured()
    training_only = {"resize_height": 20, "resize_width": 20, "crop": "random", "flip": 1.0, "jitter": 0.5}
    assert torch.equal(eval_image(image, settings(**training_only)), image)
    fixed = eval_image(image, settings(**training_only, eval_height=24, eval_width=40))
    assert torch.equal(fixed, resize((image, None), 24, 40)[0]) and fixed.shape == (3, 24, 40)


def test_wrong_types_and_sizes_are_refused() -> None:
    image, label = scene()
    transform = JointTransform(settings())
    with pytest.raises(ValueError, match=r"expected an image uint8 \[3, H, W\], got torch.float32"):
        transform(image.float(), label, torch_generator(0))
    with pytest.raises(ValueError, match=r"expected a label uint8 \[48, 64\], got torch.uint8 \[48, 63\]"):
        transform(image, label[:, 1:], torch_generator(0))


def test_pictures_become_tensors_without_a_copy() -> None:
    pixels = coloured().permute(1, 2, 0).contiguous().numpy()
    assert image_tensor(pixels).shape == (3, 48, 64)
    assert image_tensor(pixels).data_ptr() == pixels.ctypes.data
