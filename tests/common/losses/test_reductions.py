"""Are the reductions the published formulas, and what happens to ignored pixels and absent classes?"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.classes import load_table
from common.errors import UserError
from common.losses.reductions import crucial_classes, reduce_cross_entropy
from common.settings.network import Reduction

SYNTHETIC = load_table("synthetic")

CLASSES = 5
KINDS = ("mean", "weighted", "per-class", "inverse-frequency", "hard-pixels")
CRUCIAL = torch.tensor([False, True, False, True, False])


def scene(
    seed: int = 0, batch: int = 3, void: float = 0.2, size: tuple[int, int] = (4, 6)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw float64 logits, and labels in which class 4 never comes and class 0 is common."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, CLASSES, *size, generator=generator, dtype=torch.float64) * 2
    labels = torch.tensor([0, 0, 0, 1, 2, 3])[torch.randint(0, 6, (batch, *size), generator=generator)]
    labels[torch.rand(batch, *size, generator=generator) < void] = 255
    return logits.requires_grad_(), labels


def loss(logits: torch.Tensor, labels: torch.Tensor, **given: Any) -> float:
    return reduce_cross_entropy(logits, labels, Reduction(**given), CRUCIAL).item()


def slow_loss(logits: torch.Tensor, labels: torch.Tensor, reduction: Reduction) -> float:
    """The formulas, pixel by pixel."""
    images: list[Any] = list(zip(logits.detach().tolist(), labels.tolist(), strict=True))
    totals = []
    for group in [[image] for image in images] if reduction.scope == "image" else [images]:
        pixels: list[tuple[int, float]] = []
        for z, y in group:
            for i, row in enumerate(y):
                for j, label in enumerate(row):
                    column = [z[c][i][j] for c in range(CLASSES)]
                    ce = 0.0 if label == 255 else math.log(sum(map(math.exp, column))) - column[label]
                    pixels.append((label, ce))
        valid = [pixel for pixel in pixels if pixel[0] != 255]
        n = len(valid) if reduction.denominator == "valid" else len(pixels)
        per_class = {c: [ce for label, ce in valid if label == c] for c in {label for label, _ in valid}}
        total = 0.0
        if not valid:
            pass
        elif reduction.kind == "hard-pixels":
            k = max(1, math.floor(reduction.hard_share * n))
            total = sum(sorted((ce for _, ce in pixels), reverse=True)[:k]) / k
        else:
            for c, losses in per_class.items():
                if reduction.kind == "per-class":
                    total += sum(losses) / len(losses) / len(per_class)
                    continue
                factor = 1.0
                if reduction.kind == "weighted" and CRUCIAL[c]:
                    factor = reduction.weight
                if reduction.kind == "inverse-frequency":
                    factor = (n / len(losses)) ** reduction.power
                    factor = min(factor, reduction.cap) if reduction.cap else factor
                total += factor * sum(losses) / n
        totals.append(total)
    return sum(totals) / len(totals)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("denominator", ["valid", "all"])
def test_equals_the_slow_loop(kind: Any, scope: Any, denominator: Any) -> None:
    for given_more in ({}, {"power": 0.7, "cap": 1.9, "weight": 5.0, "hard_share": 0.6}):
        reduction = Reduction(kind=kind, scope=scope, denominator=denominator, **given_more)  # type: ignore[arg-type]
        logits, labels = scene()
        expected = slow_loss(logits, labels, reduction)
        assert reduce_cross_entropy(logits, labels, reduction, CRUCIAL).item() == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    void=st.sampled_from([0.0, 0.3, 0.9]),
    kind=st.sampled_from(KINDS),
    scope=st.sampled_from(["image", "batch"]),
    share=st.floats(0.01, 1),
    power=st.floats(0, 1),
)
def test_equals_the_slow_loop_on_any_scene(
    seed: int, void: float, kind: Any, scope: Any, share: float, power: float
) -> None:
    reduction = Reduction(kind=kind, scope=scope, hard_share=share, power=power)
    logits, labels = scene(seed, batch=2, void=void, size=(2, 3))
    found = reduce_cross_entropy(logits, labels, reduction, CRUCIAL).item()
    assert found == pytest.approx(slow_loss(logits, labels, reduction))


def test_a_case_computed_by_hand() -> None:
    """Equal logits cost log 2 a pixel; three pixels of class 0, one of class 1."""
    logits, labels = torch.zeros(1, 2, 1, 4), torch.tensor([[[0, 0, 0, 1]]])
    crucial, unit = torch.tensor([False, True]), math.log(2)
    cases = {
        Reduction(kind="mean"): 1,
        Reduction(kind="weighted", weight=5): (3 + 5) / 4,
        Reduction(kind="per-class"): 1,
        Reduction(kind="inverse-frequency", power=0.5): (3 * (4 / 3) ** 0.5 + 4**0.5) / 4,
        Reduction(kind="inverse-frequency", power=1): 2,
        Reduction(kind="inverse-frequency", power=1, cap=3): (3 * 4 / 3 + 3) / 4,
    }
    for reduction, expected in cases.items():
        found = reduce_cross_entropy(logits, labels, reduction, crucial).item()
        assert found == pytest.approx(expected * unit), reduction


@pytest.mark.parametrize("denominator", ["valid", "all"])
@pytest.mark.parametrize("scope", ["image", "batch"])
def test_identities_of_the_formulas(scope: str, denominator: str) -> None:
    common = {"scope": scope, "denominator": denominator}
    logits, labels = scene(4)
    mean = loss(logits, labels, kind="mean", **common)
    assert loss(logits, labels, kind="inverse-frequency", power=0, **common) == pytest.approx(mean)
    assert loss(logits, labels, kind="weighted", weight=1, **common) == pytest.approx(mean)
    assert loss(logits, labels, kind="hard-pixels", hard_share=1, **common) == pytest.approx(mean)
    assert len(labels[labels != 255].unique()) == 4  # type: ignore[no-untyped-call]
    one = loss(logits[:1], labels[:1], kind="inverse-frequency", power=1, **common)
    present = len(labels[0][labels[0] != 255].unique())  # type: ignore[no-untyped-call]
    assert one == pytest.approx(present * loss(logits[:1], labels[:1], kind="per-class", **common))


@pytest.mark.parametrize("kind", KINDS[:4])
def test_with_one_class_everything_is_the_mean(kind: str) -> None:
    logits, labels = scene(void=0)
    labels = torch.zeros_like(labels)
    assert loss(logits, labels, kind=kind, power=0.3) == pytest.approx(loss(logits, labels, kind="mean"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_class_has_no_say(kind: str) -> None:
    """A class that nothing can be mistaken for leaves the loss as it is."""
    logits, labels = scene()
    wider = torch.cat([logits, torch.full_like(logits[:, :1], -1e9)], dim=1)
    reduction, crucial = Reduction(kind=kind, power=0.3), torch.cat([CRUCIAL, torch.tensor([True])])  # type: ignore[arg-type]
    found = reduce_cross_entropy(wider, labels, reduction, crucial).item()
    assert found == pytest.approx(reduce_cross_entropy(logits, labels, reduction, CRUCIAL).item())


@pytest.mark.parametrize("kind", KINDS)
def test_more_void_changes_nothing_where_only_valid_pixels_count(kind: str) -> None:
    logits, labels = scene(void=0)
    larger, void = (
        torch.cat([logits, logits], dim=2),
        torch.cat([labels, torch.full_like(labels, 255)], dim=1),
    )
    same = loss(logits, labels, kind=kind, power=0.5)
    assert loss(larger, void, kind=kind, power=0.5) == pytest.approx(same)
    literal = loss(larger, void, kind=kind, power=0.5, denominator="all")
    assert literal != pytest.approx(same) or kind == "per-class"
    if kind == "mean":
        assert literal == pytest.approx(same / 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("denominator", ["valid", "all"])
def test_nothing_labelled_is_zero_with_a_graph(kind: Any, scope: Any, denominator: Any) -> None:
    logits, labels = scene()
    reduction = Reduction(kind=kind, scope=scope, denominator=denominator, power=1)
    found = reduce_cross_entropy(logits, torch.full_like(labels, 255), reduction, CRUCIAL)
    assert found.item() == 0
    found.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_feel_its_neighbours_unless_the_batch_is_one(kind: str) -> None:
    logits, labels = scene()
    alone = [loss(logits[i : i + 1], labels[i : i + 1], kind=kind) for i in range(3)]
    assert loss(logits, labels, kind=kind) == pytest.approx(sum(alone) / 3)
    void = torch.cat([labels, torch.full_like(labels[:1], 255)])
    more = torch.cat([logits, logits[:1]])
    assert loss(more, void, kind=kind) == pytest.approx(sum(alone) / 4)
    assert loss(more, void, kind=kind, scope="batch") == pytest.approx(
        loss(logits, labels, kind=kind, scope="batch")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_formula(kind: Any) -> None:
    logits, labels = scene(2, batch=1, size=(2, 3))
    reduction = Reduction(kind=kind, power=0.4)
    assert torch.autograd.gradcheck(lambda z: reduce_cross_entropy(z, labels, reduction, CRUCIAL), (logits,))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_single(kind: Any) -> None:
    logits, labels = scene()
    half, reduction = logits.detach().bfloat16(), Reduction(kind=kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = reduce_cross_entropy(half, labels, reduction, CRUCIAL)
    assert found.dtype == torch.float32
    exact = slow_loss(half.double(), labels, reduction)
    assert found.item() == pytest.approx(exact, rel=1e-6)


def test_a_weighted_loss_says_that_it_needs_to_know_which() -> None:
    logits, labels = scene()
    for crucial in (None, CRUCIAL[:3]):
        with pytest.raises(ValueError, match="one bool a class"):
            reduce_cross_entropy(logits, labels, Reduction(kind="weighted"), crucial)


def names(reduction: Reduction, table: Any = SYNTHETIC) -> set[str]:
    chosen = crucial_classes(reduction, table)
    assert chosen.dtype == torch.bool and chosen.shape == (table.num_classes,)
    return {name for name, yes in zip(table.names, chosen.tolist(), strict=True) if yes}


def test_crucial_classes_are_named_or_the_rare_ones() -> None:
    assert names(Reduction(kind="weighted", crucial=" person, car ,")) == {"person", "car"}
    table = replace(SYNTHETIC, rare=("grass",))
    assert names(Reduction(kind="weighted"), table) == {"grass"}
    assert names(Reduction(kind="weighted", crucial="car"), table) == {"car"}


def test_an_unknown_crucial_class_is_named() -> None:
    with pytest.raises(UserError, match=r"'persn'.*'synthetic'.*did you mean 'person'\?.*sky, building"):
        crucial_classes(Reduction(crucial="car,persn"), SYNTHETIC)


def test_a_table_without_rare_classes_needs_names_where_they_matter() -> None:
    table = replace(load_table("potsdam-3"), rare=())
    with pytest.raises(UserError, match=r"'potsdam-3'.*name the classes in reduction\.crucial"):
        crucial_classes(Reduction(kind="weighted"), table)
    assert names(Reduction(kind="mean"), table) == set()


@pytest.mark.parametrize("kind", ["mean", "inverse-frequency"])
def test_a_balance_multiplies_the_losses_of_each_class(kind: str) -> None:
    logits, labels = scene()
    balance = torch.tensor([0.5, 1.0, 2.0, 4.0, 100.0], dtype=torch.float64)
    parts = []
    for only in range(CLASSES):
        # what one class adds: the reduction is linear in the losses, its counts stay those of all
        alone = torch.zeros(CLASSES, dtype=torch.float64)
        alone[only] = 1
        parts.append(reduce_cross_entropy(logits, labels, Reduction(kind=kind), CRUCIAL, alone).item())  # type: ignore[arg-type]
    found = reduce_cross_entropy(logits, labels, Reduction(kind=kind), CRUCIAL, balance).item()  # type: ignore[arg-type]
    assert sum(parts) == pytest.approx(loss(logits, labels, kind=kind))
    assert found == pytest.approx(sum(w * p for w, p in zip(balance.tolist(), parts, strict=True)))
