"""Does a site learn from what a teacher is sure of, and from nothing else?"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client.work.adaptation import METRICS, AdaptationLoss, self_train
from common.data.data_loader import ImageBatch
from common.losses.reductions import labelled_loss, max_square_loss
from common.losses.self_training import entropy_loss
from common.models.network import build_network
from common.models.networks.deeplab import DeepLab
from common.settings.load import load_config
from common.settings.network import Reduction
from common.settings.schema import RunConfig
from common.training.steps import Stepper
from tests.support.training import without_times

pytestmark = pytest.mark.usefixtures("narrow")

CLASSES, SIZE = 3, (4, 5)


def settings(**teacher: Any) -> RunConfig:
    given = {"task": "adaptation", "network.weights": "random"}
    return load_config(given | {f"teacher.{key.replace('_', '-')}": value for key, value in teacher.items()})


def draws(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Says(nn.Module):
    """A network that says the same of every image, and counts how often it was asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.asked = logits, 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += 1
        return self.logits


class Closed(ImageBatch):
    """A batch whose labels nobody may look at."""

    def __getattribute__(self, name: str) -> Any:
        if name == "labels":
            raise AssertionError("a label was asked for")
        return super().__getattribute__(name)


def batch(valid: Tensor | None = None) -> ImageBatch:
    return Closed(torch.rand(2, 3, *SIZE), None, [0, 1], valid)


def slow_labels(logits: Tensor, confidence: float, fraction: float, valid: Tensor) -> Tensor:
    """Label pixels by the rule as it is written: sure ones, and the surest share of each class in each image."""
    probabilities = logits.softmax(dim=1)
    labels = torch.full((len(logits), *SIZE), 255)
    for image in range(len(logits)):
        places = [(i, j) for i in range(SIZE[0]) for j in range(SIZE[1]) if valid[image, i, j]]
        said = {place: int(probabilities[image, :, place[0], place[1]].argmax()) for place in places}
        sure = {place: float(probabilities[image, said[place], place[0], place[1]]) for place in places}
        for c in range(CLASSES):
            own = sorted((place for place in places if said[place] == c), key=lambda p: -sure[p])
            kept = own[: math.floor(fraction * len(own))] + [p for p in own if sure[p] > confidence]
            for place in kept:
                labels[image, place[0], place[1]] = c
    return labels


def slow_cross_entropy(logits: Tensor, labels: Tensor) -> tuple[float, int]:
    logs, total, count = logits.log_softmax(dim=1), 0.0, 0
    for image, i, j in (labels != 255).nonzero().tolist():
        total -= float(logs[image, labels[image, i, j], i, j])
        count += 1
    return total, count


@pytest.mark.parametrize("denominator", ["all", "kept"])
def test_the_loss_is_that_of_the_pixels_the_teacher_is_sure_of(denominator: str) -> None:
    said, logits = 2 * draws(0, 2, CLASSES, *SIZE), draws(1, 2, CLASSES, *SIZE)
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[0, :, :2] = False  # padding: nothing of the image is there
    config = settings(confidence=0.8, fraction=0.5, denominator=denominator, weight=3.0)
    loss = AdaptationLoss(config, Says(said), None)
    labels = slow_labels(said, 0.8, 0.5, valid)
    total, count = slow_cross_entropy(logits, labels)
    expected = 3 * total / (labels.numel() if denominator == "all" else count)
    assert loss(logits, batch(valid)).item() == pytest.approx(expected, rel=1e-5)
    found = loss.metrics()
    assert found["kept"] == pytest.approx(count / labels.numel())
    assert 0 < count < int(valid.sum())
    assert found["loss"] == found["pseudo_label"] == pytest.approx(expected, rel=1e-5)


def test_the_entropy_is_that_of_the_image_and_not_of_its_padding() -> None:
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[:, :, 3:] = False
    logits = draws(1, 2, CLASSES, *SIZE)
    loss = AdaptationLoss(settings(weight=0.0, entropy_weight=1.0), Says(draws(0, 2, CLASSES, *SIZE)), None)
    assert loss(logits, batch(valid)).item() == pytest.approx(entropy_loss(logits[..., :3]).item(), rel=1e-5)


def test_without_a_teacher_the_student_labels_and_is_not_moved_by_labelling() -> None:
    logits = draws(2, 2, CLASSES, *SIZE).requires_grad_()
    other = logits.detach().clone().requires_grad_()
    AdaptationLoss(settings(), None, None)(logits, batch()).backward()  # type: ignore[no-untyped-call]
    AdaptationLoss(settings(), Says(other.detach()), None)(other, batch()).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and other.grad is not None
    assert torch.equal(logits.grad, other.grad) and bool(logits.grad.abs().sum() > 0)


def test_distillation_pulls_to_the_pretrained_network_where_that_is_sure() -> None:
    """The mean over pixels and classes of the cross-entropy against softened probabilities, on sure pixels alone."""
    said, first = 2 * draws(3, 2, CLASSES, *SIZE), 2 * draws(4, 2, CLASSES, *SIZE)
    logits = draws(5, 2, CLASSES, *SIZE)
    config = settings(weight=0.0, distill_weight=2.0, distill_alpha=0.5, confidence=0.8, fraction=0.5)
    loss = AdaptationLoss(config, Says(said), Says(first))
    everywhere = torch.ones(2, *SIZE, dtype=torch.bool)
    sure = slow_labels(first, 0.8, 0.5, everywhere) != 255
    pixels = -((0.5 * first).softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1)
    expected = 2 * float((pixels * sure).mean()) / CLASSES
    assert loss(logits, batch()).item() == pytest.approx(expected, rel=1e-5)
    assert loss.metrics()["distillation"] == pytest.approx(expected, rel=1e-5)
    assert not torch.equal(sure, slow_labels(said, 0.8, 0.5, everywhere) != 255)


def test_a_teacher_that_is_the_pretrained_network_is_asked_once() -> None:
    one = Says(draws(6, 2, CLASSES, *SIZE))
    twin = Says(one.logits)
    logits = draws(7, 2, CLASSES, *SIZE)
    config = settings(distill_weight=1.0)
    shared = AdaptationLoss(config, one, one)(logits, batch())
    assert one.asked == 1
    assert torch.equal(shared, AdaptationLoss(config, one, twin)(logits, batch())) and twin.asked == 1


def test_terms_of_no_weight_cost_nothing_and_the_rest_add_up() -> None:
    first = Says(draws(8, 2, CLASSES, *SIZE))
    logits = draws(9, 2, CLASSES, *SIZE)
    quiet = AdaptationLoss(settings(), Says(first.logits), first)
    quiet(logits, batch())
    assert first.asked == 0
    config = settings(distill_weight=1.0, entropy_weight=0.5)
    loss = AdaptationLoss(config, Says(first.logits), first)
    values = [loss(draws(seed, 2, CLASSES, *SIZE), batch()).item() for seed in (10, 11)]
    found = loss.metrics() | {"prox": 0.0}
    assert set(found) == set(METRICS)
    assert found["steps"] == 2 and found["entropy"] > 0
    assert found["loss"] == pytest.approx(sum(values) / 2)
    parts = found["pseudo_label"] + found["distillation"] + found["entropy"]
    assert found["loss"] == pytest.approx(parts)
    loss = AdaptationLoss(settings(weight=0.0, max_square_weight=2.0), Says(first.logits), None)
    expected = 2 * max_square_loss(logits).item()
    assert loss(logits, batch()).item() == pytest.approx(expected)
    assert loss.metrics()["max_square"] == loss.metrics()["loss"] == pytest.approx(expected)


@pytest.mark.parametrize("denominator", ["all", "kept"])
def test_kept_pixels_weigh_as_the_reduction_says_if_asked(denominator: str) -> None:
    """Inverse frequency counts the kept pixels of a class alone; Lovász and crucial classes come along."""
    said, logits = 2 * draws(0, 2, CLASSES, *SIZE), draws(1, 2, CLASSES, *SIZE)
    everywhere = torch.ones(2, *SIZE, dtype=torch.bool)
    labels, logs = slow_labels(said, 0.8, 0.5, everywhere), logits.log_softmax(dim=1)
    expected = 0.0
    for image in range(2):
        kept = (labels[image] != 255).nonzero().tolist()
        total = len(kept) if denominator == "kept" else SIZE[0] * SIZE[1]
        for i, j in kept:
            c = int(labels[image, i, j])
            of_class = int((labels[image] == c).sum())
            expected -= (total / of_class) ** 0.5 * float(logs[image, c, i, j]) / total / 2
    wanted = {"confidence": 0.8, "fraction": 0.5, "denominator": denominator}
    by_count = Reduction(kind="inverse-frequency", power=0.5)
    for reduce in (True, False):
        config = settings(**wanted, reduce=reduce).model_copy(update={"reduction": by_count})
        loss = AdaptationLoss(config, Says(said), None)(logits, batch()).item()
        assert (loss == pytest.approx(expected, rel=1e-5)) == reduce
    chosen = Reduction(kind="weighted", lovasz_weight=0.5)
    config = settings(**wanted, reduce=True).model_copy(update={"reduction": chosen})
    crucial = torch.tensor([True, False, False])
    reduction = chosen.model_copy(update={"denominator": "valid" if denominator == "kept" else "all"})
    expected = labelled_loss(logits, labels, reduction, crucial).item()
    assert AdaptationLoss(config, Says(said), None, crucial)(logits, batch()).item() == pytest.approx(
        expected
    )


def test_nothing_sure_is_a_loss_of_zero_with_a_gradient() -> None:
    for denominator in ("all", "kept"):
        logits = draws(12, 2, CLASSES, *SIZE).requires_grad_()
        config = settings(confidence=1.0, fraction=0.0, denominator=denominator)
        value = AdaptationLoss(config, Says(draws(13, 2, CLASSES, *SIZE)), None)(logits, batch())
        value.backward()  # type: ignore[no-untyped-call]
        assert value.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_a_teacher_that_diverged_is_named() -> None:
    broken = Says(torch.full((2, CLASSES, *SIZE), math.nan))
    with pytest.raises(ValueError, match="teacher's logits are not finite"):
        AdaptationLoss(settings(), broken, None)(draws(14, 2, CLASSES, *SIZE), batch())


def network(config: RunConfig, seed: int) -> DeepLab:
    return build_network(CLASSES, config.network, seed)


def test_a_round_moves_the_student_and_nobody_else() -> None:
    config = settings(distill_weight=1.0)
    student, teacher = network(config, 0), network(config, 1).eval().requires_grad_(False)
    before = {name: value.clone() for part in (student, teacher) for name, value in part.state_dict().items()}
    kept = {name: value.clone() for name, value in teacher.state_dict().items()}
    stepper = Stepper(student, config.sgd, first_step=0, total_steps=4, seed=0)
    batches = [ImageBatch(torch.rand(2, 3, 48, 48), None, [0, 1]) for _ in range(2)]
    found = self_train(student, batches, AdaptationLoss(config, teacher, teacher), stepper)
    assert set(without_times(found)) == set(METRICS) and found["steps"] == stepper.taken == 2
    assert found["prox"] == 0 and found["loss"] > 0
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())
    moved = [name for name, value in student.state_dict().items() if not torch.equal(value, before[name])]
    assert any(name.startswith("head.") for name in moved)
    assert any(name.endswith("running_mean") for name in moved)


def test_a_loss_that_is_not_finite_stops_the_round_by_its_number() -> None:
    config = settings()
    student = network(config, 0)
    stepper = Stepper(student, config.sgd, first_step=6, total_steps=9, seed=0)
    images = torch.rand(2, 3, 48, 48)
    images[0, 0, 0, 0] = math.nan
    teacher = Says(torch.zeros(2, CLASSES, 48, 48))
    with pytest.raises(ValueError, match=r"step 7 of the run.*the images hold NaN"):
        self_train(
            student, [ImageBatch(images, None, [0, 1])], AdaptationLoss(config, teacher, None), stepper
        )


class Watched(nn.Module):
    """A teacher of one pixel-wise rule, so that mirrored answers can be worked out; remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        place = torch.arange(images.shape[-1], dtype=torch.float32)  # not symmetric: a mirror image differs
        return torch.stack(
            [images.sum(dim=1) + place] + [place.expand_as(images[:, 0])] * (CLASSES - 1), dim=1
        )


def test_the_teacher_sees_the_plain_cut_where_there_is_one() -> None:
    given = ImageBatch(torch.rand(2, 3, *SIZE), None, [0, 1], None, torch.rand(2, 3, *SIZE))
    teacher = Watched()
    AdaptationLoss(settings(), teacher, None)(draws(1, 2, CLASSES, *SIZE), given)
    assert len(teacher.seen) == 1 and given.plain is not None and torch.equal(teacher.seen[0], given.plain)


def test_a_mirrored_teacher_answers_with_the_mean_of_both_views() -> None:
    images = torch.rand(2, 3, *SIZE)
    teacher = Watched()
    found = AdaptationLoss(settings(mirror=True), teacher, None).logits(teacher, images)
    mirrored = teacher(images.flip(-1)).flip(-1)
    torch.testing.assert_close(found, (teacher(images) + mirrored) / 2)
    assert not torch.allclose(found, teacher(images))
