"""Are exactly the sure pixels kept, and are the losses on them the published formulas?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.losses import self_training
from common.losses.reductions import labelled_loss, lovasz_softmax_loss, max_square_loss, reduce_cross_entropy
from common.losses.self_training import (
    distillation_loss,
    entropy_loss,
    kept_pixels,
    predictions,
    pseudo_label_loss,
    sure_pixels,
)
from common.settings.network import Reduction


def draw(seed: int, *shape: int, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread


def slow_choice(
    certainty: torch.Tensor, classes: torch.Tensor, confidence: float, fraction: float
) -> torch.Tensor:
    """The rule, image by image and class by class; Python's sort is stable, so the first of equals wins."""
    kept = certainty > confidence
    for image in range(len(classes)):
        sure, label = certainty[image].flatten().tolist(), classes[image].flatten().tolist()
        for name in set(label):
            members = [u for u, k in enumerate(label) if k == name]
            members.sort(key=lambda u: -sure[u])
            for u in members[: math.floor(fraction * len(members))]:
                kept[image].view(-1)[u] = True
    return kept


@pytest.mark.parametrize("confidence", [0.9, 0.5, 1.0, 0.0])
@pytest.mark.parametrize("fraction", [0.66, 0.0, 0.1, 0.99])
@pytest.mark.parametrize("spread", [0.01, 1.0, 20.0])
def test_equals_the_slow_loop(confidence: float, fraction: float, spread: float) -> None:
    logits = draw(1, 3, 5, 17, 13, spread=spread)
    certainty, classes = logits.softmax(dim=1).max(dim=1)
    kept = slow_choice(certainty, classes, confidence, fraction)
    found, names = predictions(logits)
    torch.testing.assert_close(found, certainty)
    assert torch.equal(names, classes.byte())
    assert torch.equal(sure_pixels(certainty, classes, 5, confidence, fraction), kept)
    labels = kept_pixels(logits, confidence, fraction)
    assert labels.dtype == torch.int64 and labels.shape == kept.shape
    assert torch.equal(labels, torch.where(slow_choice(found, classes, confidence, fraction), classes, 255))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    levels=st.sampled_from([1, 2, 5, 1000]),
    top=st.sampled_from([1.0, 0.93, 0.2, 1e-4]),
    confidence=st.floats(0, 1),
    fraction=st.floats(0, 0.999),
)
def test_equals_the_slow_loop_with_many_equals(
    seed: int, levels: int, top: float, confidence: float, fraction: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    certainty = torch.randint(1, levels + 1, (2, 5, 9), generator=generator) / levels * top
    classes = torch.randint(0, 3, (2, 5, 9), generator=generator)
    expected = slow_choice(certainty, classes, confidence, fraction)
    assert torch.equal(sure_pixels(certainty, classes, 3, confidence, fraction), expected)


def test_counts_are_exact_and_only_the_surest_are_kept() -> None:
    """At a size at which the histogram matters: a bucket holds many pixels, a class many thousands."""
    logits = draw(3, 2, 4, 120, 160)
    certainty, classes = predictions(logits)
    kept = sure_pixels(certainty, classes, 4, 1.0, 0.66)
    for image in range(2):
        for name in range(4):
            mine = classes[image] == name
            assert int(kept[image][mine].sum()) == math.floor(0.66 * int(mine.sum()))
            worst, best_left = (
                certainty[image][mine & kept[image]].min(),
                certainty[image][mine & ~kept[image]].max(),
            )
            assert worst >= best_left


def test_the_two_rules_are_joined() -> None:
    certainty = torch.tensor([[[0.95, 0.92, 0.91, 0.6, 0.5], [0.8, 0.7, 0.65, 0.6, 0.55]]])
    classes = torch.tensor([[[0] * 5, [1] * 5]])
    kept = sure_pixels(certainty, classes, 2, 0.9, 0.4)
    # class 0: three above 0.9, more than its two; class 1: its two best, none above 0.9
    assert kept.tolist() == [[[True, True, True, False, False], [True, True, False, False, False]]]


def test_a_single_pixel_of_a_class_is_kept_by_its_confidence_only() -> None:
    classes = torch.tensor([[[0, 0, 0, 1, 2]]])
    kept = sure_pixels(torch.tensor([[[0.5, 0.6, 0.7, 0.8, 0.9]]]), classes, 3, 0.85, 0.66)
    assert kept.tolist() == [[[False, False, True, False, True]]]


def test_of_equals_the_first_ones_are_kept_and_confidence_is_strict() -> None:
    certainty, classes = torch.full((2, 3, 4), 0.75), torch.zeros(2, 3, 4, dtype=torch.int64)
    kept = sure_pixels(certainty, classes, 2, 0.75, 0.5).flatten(1)
    assert torch.equal(kept, (torch.arange(12) < 6).expand(2, 12))


def test_what_is_no_image_fills_nobodys_share() -> None:
    """Ten pixels of class 0, the six surest of them padding: half of the other four is two, not none."""
    certainty = torch.tensor([0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.8, 0.7, 0.6, 0.55])
    logits = torch.stack([certainty.log(), (1 - certainty).log()]).view(1, 2, 1, 10)
    valid = (torch.arange(10) >= 6).view(1, 1, 10)
    assert kept_pixels(logits, 1.0, 0.5, valid).tolist() == [[[255] * 6 + [0, 0, 255, 255]]]
    assert kept_pixels(logits, 0.9, 0.0, valid).tolist() == [[[255] * 10]]  # certain, and still no image
    assert kept_pixels(logits, 1.0, 0.5, torch.zeros_like(valid)).tolist() == [[[255] * 10]]
    everywhere = torch.ones_like(valid)
    assert torch.equal(kept_pixels(logits, 1.0, 0.5, everywhere), kept_pixels(logits, 1.0, 0.5))


def test_images_do_not_feel_each_other_and_void_columns_do_not_shift_places() -> None:
    logits = draw(5, 3, 4, 9, 7)
    together = kept_pixels(logits, 0.9, 0.5)
    for image in range(3):
        assert torch.equal(together[image], kept_pixels(logits[image : image + 1], 0.9, 0.5)[0])
    # another memory layout is the same picture
    assert torch.equal(together, kept_pixels(logits.contiguous(memory_format=torch.channels_last), 0.9, 0.5))


def test_a_permutation_of_classes_is_carried_through() -> None:
    logits, order = draw(6, 2, 5, 8, 8), torch.tensor([3, 0, 4, 1, 2])
    labels, permuted = kept_pixels(logits, 0.9, 0.66), kept_pixels(logits[:, order], 0.9, 0.66)
    back = torch.cat([order, torch.full((251,), 255)])
    assert torch.equal(labels, back[permuted])


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = draw(7, 2, 5, 10, 11)
    whole = predictions(logits)
    monkeypatch.setattr(self_training, "BLOCK", 16)
    certainty, classes = predictions(logits)
    torch.testing.assert_close(certainty, whole[0], rtol=3e-7, atol=0)
    assert torch.equal(classes, whole[1])


@pytest.mark.parametrize("offset", [-300.0, -70.0, 70.0, 87.0, 300.0])
def test_logits_of_any_size_are_one_softmax(monkeypatch: pytest.MonkeyPatch, offset: float) -> None:
    """exp of some of them is no float32; whatever block meets them first, the others lose nothing."""
    monkeypatch.setattr(self_training, "BLOCK", 64)
    logits = draw(10, 2, 5, 12, 16)
    logits[1, :, 6:] += offset
    expected, classes = logits.softmax(dim=1).max(dim=1)
    certainty, found = predictions(logits)
    torch.testing.assert_close(certainty, expected, rtol=2e-6, atol=0)
    assert torch.equal(found, classes.byte())


def test_no_more_classes_than_a_label_can_name() -> None:
    logits = torch.zeros(1, 256, 2, 2)
    logits[0, 254] = 5.0
    assert predictions(logits[:, :255])[1].unique().tolist() == [254]
    with pytest.raises(ValueError, match="256 classes"):
        predictions(logits)


def test_equal_logits_are_the_first_class_and_half_precision_works() -> None:
    certainty, classes = predictions(torch.zeros(1, 4, 2, 2, dtype=torch.bfloat16))
    assert not classes.any() and certainty.dtype == torch.float32
    assert torch.equal(certainty, torch.full((1, 2, 2), 0.25))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_teacher_is_no_silent_teacher(bad: float) -> None:
    logits = draw(8, 1, 3, 4, 4)
    logits[0, 1, 2, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        kept_pixels(logits, 0.9, 0.66)


def test_a_class_that_cannot_be_is_never_the_label() -> None:
    logits = draw(8, 1, 3, 4, 4)
    logits[:, 1] = -math.inf
    assert set(kept_pixels(logits, 0.0, 0.66).unique().tolist()) == {0, 2}
    logits[0, :, 2, 2] = -math.inf
    with pytest.raises(ValueError, match="not finite"):
        kept_pixels(logits, 0.9, 0.66)


def test_labels_carry_no_graph() -> None:
    assert not kept_pixels(draw(9, 1, 3, 4, 4).requires_grad_(), 0.5, 0.5).requires_grad


def log_softmax(column: list[float]) -> list[float]:
    total = math.log(sum(map(math.exp, column)))
    return [value - total for value in column]


def columns(logits: torch.Tensor) -> list[list[float]]:
    return [logits[b, :, i, j].tolist() for b, i, j in np.ndindex(len(logits), *logits.shape[2:])]


def test_pseudo_label_loss_divides_by_all_or_by_the_kept() -> None:
    student, labels = draw(1, 2, 3, 4, 5).double(), kept_pixels(draw(2, 2, 3, 4, 5), 0.8, 0.3)
    pairs = list(zip(columns(student), labels.flatten().tolist(), strict=True))
    total = -sum(log_softmax(column)[label] for column, label in pairs if label != 255)
    kept = sum(label != 255 for _, label in pairs)
    assert 0 < kept < 40
    assert pseudo_label_loss(student, labels, "all").item() == pytest.approx(total / 40)
    assert pseudo_label_loss(student, labels, "kept").item() == pytest.approx(total / kept)


@pytest.mark.parametrize("denominator", ["all", "kept"])
def test_no_kept_pixel_is_zero_with_a_graph(denominator: Any) -> None:
    student = draw(1, 2, 3, 4, 5).requires_grad_()
    loss = pseudo_label_loss(student, torch.full((2, 4, 5), 255), denominator)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0 and student.grad is not None and not student.grad.any()


def test_distillation_equals_the_slow_loop() -> None:
    student, teacher = draw(1, 2, 3, 4, 5).double(), draw(2, 2, 3, 4, 5).double()
    mask = kept_pixels(teacher, 0.8, 0.3) != 255
    expected = 0.0
    for z, t, kept in zip(columns(student), columns(teacher), mask.flatten().tolist(), strict=True):
        soft = log_softmax([0.5 * value for value in t])
        expected -= kept * sum(math.exp(a) * b for a, b in zip(soft, log_softmax(z), strict=True)) / 3 / 40
    assert distillation_loss(student, teacher, 0.5, mask).item() == pytest.approx(expected)


def test_distillation_is_least_at_the_softened_teacher_and_leaves_it_alone() -> None:
    teacher, mask = draw(2, 1, 3, 4, 5).requires_grad_(), torch.ones(1, 4, 5, dtype=torch.bool)
    student = (0.5 * teacher.detach()).requires_grad_()
    distillation_loss(student, teacher, 0.5, mask).backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None and student.grad is not None
    assert float(student.grad.abs().max()) < 1e-7
    off = draw(3, 1, 3, 4, 5).requires_grad_()
    distillation_loss(off, teacher, 0.5, torch.zeros_like(mask)).backward()  # type: ignore[no-untyped-call]
    assert off.grad is not None and not off.grad.any()


def test_entropy_equals_the_slow_loop_and_its_bounds() -> None:
    logits = draw(1, 2, 3, 4, 5).double()
    terms = []
    for column in columns(logits):
        entropy = -sum(math.exp(v) * v for v in log_softmax(column)) / math.log(3)
        terms.append((entropy**2 + 1e-8) ** 2)
    assert entropy_loss(logits).item() == pytest.approx(sum(terms) / len(terms))
    assert entropy_loss(torch.zeros(1, 4, 2, 2)).item() == pytest.approx(1)
    certain = torch.tensor([200.0, 0, 0]).view(1, 3, 1, 1).requires_grad_()
    loss = entropy_loss(certain)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() < 1e-12 and certain.grad is not None and bool(certain.grad.isfinite().all())


def test_entropy_is_a_mean_over_the_image() -> None:
    logits, valid = draw(1, 2, 3, 4, 5), torch.ones(2, 4, 5, dtype=torch.bool)
    assert torch.equal(
        entropy_loss(logits, valid), entropy_loss(logits)
    )  # to the last bit: no run may change
    valid[:, 2:] = False
    assert entropy_loss(logits, valid).item() == pytest.approx(entropy_loss(logits[:, :, :2]).item())
    assert entropy_loss(logits, torch.zeros_like(valid)).item() == 0


@pytest.mark.parametrize(
    "loss",
    [
        entropy_loss,
        max_square_loss,
        lambda z: distillation_loss(z, draw(5, 1, 3, 4, 4), 0.5, torch.ones(1, 4, 4, dtype=torch.bool)),
        lambda z: pseudo_label_loss(z, torch.ones(1, 4, 4, dtype=torch.int64), "all"),
        lambda z: lovasz_softmax_loss(z, torch.ones(1, 4, 4, dtype=torch.int64)),
    ],
)
def test_half_precision_is_computed_in_single(loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
    half = draw(4, 1, 3, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(half)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss(half.float()).item(), rel=1e-6)


def jaccard_loss(truth: set[int], mistakes: set[int]) -> float:
    """1 - IoU of a class if exactly these pixels are wrong about it."""
    return len(mistakes) / len(truth | mistakes)


def test_lovasz_equals_the_definition_of_the_extension() -> None:
    """Sum of errors from large to small, each times what that one mistake more costs."""
    logits, labels = draw(1, 2, 4, 2, 3).double(), torch.tensor([0, 1, 255, 1, 3, 3, 0, 255, 1, 0, 0, 3])
    flat = [(c, y) for c, y in zip(columns(logits), labels.tolist(), strict=True) if y != 255]
    totals = []
    for name in (0, 1, 3):
        truth = {u for u, (_, y) in enumerate(flat) if y == name}
        errors = {u: abs((y == name) - math.exp(log_softmax(c)[name])) for u, (c, y) in enumerate(flat)}
        total, wrong = 0.0, set[int]()
        for u in sorted(errors, key=lambda u: -errors[u]):
            total += errors[u] * (jaccard_loss(truth, wrong | {u}) - jaccard_loss(truth, wrong))
            wrong |= {u}
        totals.append(total)
    assert lovasz_softmax_loss(logits, labels.view(2, 2, 3)).item() == pytest.approx(sum(totals) / 3)


def test_lovasz_of_hard_predictions_is_the_mean_of_one_minus_iou() -> None:
    labels = torch.tensor([[[0, 0, 1, 1, 1, 255]]])
    predicted = torch.tensor([[[0, 1, 1, 1, 0, 2]]])
    logits = 1e3 * torch.nn.functional.one_hot(predicted, 3).movedim(-1, 1).float()
    assert lovasz_softmax_loss(logits, labels).item() == pytest.approx(1 - (1 / 3 + 2 / 4) / 2)
    assert lovasz_softmax_loss(logits, torch.full_like(labels, 255)).item() == 0


def test_max_square_equals_the_slow_loop() -> None:
    logits = draw(1, 2, 3, 4, 5).double()
    total = 0.0
    for image in range(2):
        found = [[math.exp(v) for v in log_softmax(c)] for c in columns(logits[image : image + 1])]
        named = [p.index(max(p)) for p in found]
        for p, k in zip(found, named, strict=True):
            total -= sum(v**2 for v in p) / (2 * named.count(k) ** 0.2 * len(found) ** 0.8) / 2
    assert max_square_loss(logits).item() == pytest.approx(total)
    assert max_square_loss(torch.zeros(1, 4, 2, 2), 0).item() == pytest.approx(-1 / 8)
    valid = torch.ones(2, 4, 5, dtype=torch.bool)
    assert torch.equal(max_square_loss(logits, valid=valid), max_square_loss(logits))
    valid[:, 2:] = False
    assert max_square_loss(logits, valid=valid).item() == pytest.approx(
        max_square_loss(logits[:, :, :2]).item()
    )
    assert max_square_loss(logits, valid=torch.zeros_like(valid)).item() == 0


def test_labelled_pixels_may_be_judged_by_overlap_as_well() -> None:
    logits, labels = draw(1, 2, 4, 2, 3), torch.tensor([0, 1, 255, 1, 3, 3, 0, 255, 1, 0, 0, 3]).view(2, 2, 3)
    plain, both = Reduction(), Reduction(lovasz_weight=0.5)
    expected = reduce_cross_entropy(logits, labels, plain) + 0.5 * lovasz_softmax_loss(logits, labels)
    assert labelled_loss(logits, labels, both).item() == pytest.approx(expected.item())
    assert torch.equal(labelled_loss(logits, labels, plain), reduce_cross_entropy(logits, labels, plain))
