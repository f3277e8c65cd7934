"""Does the fast correspondence loss give the published numbers?"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from common.losses.base import Batch, View, cosine_cluster_loss
from common.losses.correspondence import (
    Correspondence,
    CorrespondenceSettings,
    Draw,
    correspondence_loss,
    draw,
    standing_out,
)
from common.losses.sampling import (
    bilinear,
    derangements,
    gather,
    published_partners,
    salient_coords,
    uniform_coords,
)
from common.models.head import build_head, channel_mask
from common.settings.objectives import Loss
from common.settings.schema import RunConfig
from common.settings.unsupervised import Model
from tests.support.codes import generator

GRID = (3, 5)


def maps(seed: int, batch: int = 3, channels: int = 6, dim: int = 4, dropout: bool = True) -> View:
    g = generator(seed)
    features = torch.randn(batch, GRID[0] * GRID[1], channels, generator=g) + 0.5
    codes = torch.randn(batch, GRID[0] * GRID[1], dim, generator=g).requires_grad_()
    mask = (torch.rand(batch, 1, channels, generator=g) > 0.3).float() / 0.7 if dropout else None
    return View(features, codes, mask)


def as_image(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *GRID)


def dropped(side: View) -> torch.Tensor:
    """The features as the published code has them: whole maps, channels dropped before any sampling."""
    return as_image(side.features if side.mask is None else side.features * side.mask)


def slow_pair(
    f1: np.ndarray,
    f2: np.ndarray,
    c1: np.ndarray,
    c2: np.ndarray,
    shift: float | None,
    positive: bool,
    s: CorrespondenceSettings,
) -> float:
    """One term of the loss, number by number, from [B, P, C] samples."""

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / (max(np.linalg.norm(a), 1e-10) * max(np.linalg.norm(b), 1e-10)))

    batch, points = f1.shape[:2]
    fd, cd = np.zeros((batch, points, points)), np.zeros((batch, points, points))
    for n, p, q in itertools.product(range(batch), range(points), range(points)):
        fd[n, p, q] = cosine(f1[n, p], f2[n, q])
        cd[n, p, q] = cosine(c1[n, p], c2[n, q])
    if s.pointwise:
        old = fd.mean()
        for n, p in itertools.product(range(batch), range(points)):
            fd[n, p] -= fd[n, p].mean()
        fd = fd - fd.mean() + old
    if shift is None:
        shift = abs(fd.mean() - cd.mean()) if positive else 3.5 * (fd.mean() + cd.mean())
    total = 0.0
    for f, c in zip(fd.ravel(), cd.ravel(), strict=True):
        clamped = max(c, 0.0) if s.zero_clamp else c
        clamped = min(clamped, 0.8) if s.stabilize else clamped
        total += -clamped * (f - shift)
    return total / fd.size


def slow_loss(anchor: View, positive: View, chosen: Draw, s: CorrespondenceSettings) -> dict[str, float]:
    """The published loss: drop channels, sample whole maps by grid_sample, permute, compare."""

    def sample(image: torch.Tensor, coords: torch.Tensor) -> np.ndarray:
        found = functional.grid_sample(
            image, coords[:, :, None], mode="bilinear", padding_mode="border", align_corners=True
        )
        return found[..., 0].transpose(1, 2).detach().numpy().astype(float)

    features, codes = dropped(anchor), as_image(anchor.codes)
    here = sample(features, chosen.anchor), sample(codes, chosen.anchor)
    fixed = s.shift == "fixed"

    def pair(f2: np.ndarray, c2: np.ndarray, shift: float, is_positive: bool) -> float:
        return slow_pair(here[0], f2, here[1], c2, shift if fixed else None, is_positive, s)

    intra = pair(*here, s.intra_shift, True)
    there = sample(dropped(positive), chosen.partner), sample(as_image(positive.codes), chosen.partner)
    inter = pair(*there, s.inter_shift, True)
    negatives = []
    for permutation in chosen.negatives:
        f2, c2 = sample(features[permutation], chosen.partner), sample(codes[permutation], chosen.partner)
        negatives.append(pair(f2, c2, s.negative_shift, False))
    negative = float(np.mean(negatives)) if negatives else 0.0
    weighted = s.intra_weight * intra + s.inter_weight * inter
    weighted += s.negative_weight * negative
    return {
        "intra": intra,
        "inter": inter,
        "negative": negative,
        "total": s.weight * weighted,
    }


@pytest.mark.parametrize("shift", ["fixed", "auto"])
@pytest.mark.parametrize("pointwise", [True, False])
@pytest.mark.parametrize(
    ("zero_clamp", "stabilize"), [(True, False), (False, False), (True, True), (False, True)]
)
def test_equals_the_slow_loop_with_every_switch(
    shift: Any, pointwise: bool, zero_clamp: bool, stabilize: bool
) -> None:
    s = CorrespondenceSettings(
        samples=2, negatives=2, weight=1.7, shift=shift, pointwise=pointwise,
        zero_clamp=zero_clamp, stabilize=stabilize,
    )  # fmt: skip
    anchor, positive, chosen = maps(1), maps(2), draw(3, s, generator(3))
    found = correspondence_loss(anchor, positive, GRID, chosen, s)
    expected = slow_loss(anchor, positive, chosen, s)
    for name, value in expected.items():
        assert getattr(found, name).item() == pytest.approx(value, abs=1e-6), name


def test_gradient_equals_autograd_through_the_published_operations() -> None:
    s = CorrespondenceSettings(samples=2, negatives=2)
    anchor, positive, chosen = maps(1), maps(2), draw(3, s, generator(3))
    correspondence_loss(anchor, positive, GRID, chosen, s).total.backward()

    def dense(side: View, coords: torch.Tensor, codes: torch.Tensor, order: Any = slice(None)) -> Any:
        where: dict[str, Any] = {"mode": "bilinear", "padding_mode": "border", "align_corners": True}
        pair = (dropped(side)[order], as_image(codes)[order])
        return [
            functional.normalize(functional.grid_sample(x, coords[:, :, None], **where)[..., 0], dim=1)
            for x in pair
        ]

    codes, others = (side.codes.detach().clone().requires_grad_() for side in (anchor, positive))
    f1, c1 = dense(anchor, chosen.anchor, codes)
    pairs = [(s.intra_weight, s.intra_shift, f1, c1)]
    pairs.append((s.inter_weight, s.inter_shift, *dense(positive, chosen.partner, others)))
    for permutation in chosen.negatives:
        values = dense(anchor, chosen.partner, codes, permutation)
        pairs.append((s.negative_weight / 2, s.negative_shift, *values))
    total = torch.zeros(())
    for weight, shift, f2, c2 in pairs:
        fd, cd = f1.transpose(1, 2) @ f2, c1.transpose(1, 2) @ c2
        fd = fd - fd.mean(2, keepdim=True) + fd.mean()
        total = total - weight * (cd.clamp(min=0) * (fd - shift)).mean()
    total.backward()
    torch.testing.assert_close(anchor.codes.grad, codes.grad, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(positive.codes.grad, others.grad, rtol=1e-4, atol=1e-7)


def test_a_batch_of_one_has_no_negative_term_and_no_self_pair() -> None:
    s = CorrespondenceSettings(samples=3)
    chosen = draw(1, s, generator())
    assert chosen.negatives.shape == (0, 1)
    found = correspondence_loss(maps(1, batch=1), maps(2, batch=1), GRID, chosen, s)
    assert found.negative.item() == 0
    expected = s.intra_weight * found.intra + s.inter_weight * found.inter
    assert found.total.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("only", ["intra", "inter", "negative"])
def test_a_term_of_weight_zero_is_left_out(only: str) -> None:
    weights = {f"{name}_weight": float(name == only) for name in ("intra", "inter", "negative")}
    s = CorrespondenceSettings(samples=2, negatives=2, **weights)
    anchor, positive, chosen = maps(1), maps(2), draw(3, s, generator(3))
    found = correspondence_loss(anchor, positive, GRID, chosen, s)
    everything = correspondence_loss(
        anchor, positive, GRID, chosen, CorrespondenceSettings(samples=2, negatives=2)
    )
    assert found.total.item() == pytest.approx(float(getattr(everything, only)), rel=1e-6)
    assert sum(float(getattr(found, name)) != 0 for name in ("intra", "inter", "negative")) == 1


def test_without_positives_and_without_anything_the_loss_is_still_a_number_with_a_gradient() -> None:
    anchor = maps(1)
    chosen = draw(3, CorrespondenceSettings(samples=2), generator())
    assert (
        correspondence_loss(anchor, None, GRID, chosen, CorrespondenceSettings(samples=2)).inter.item() == 0
    )
    nothing = CorrespondenceSettings(samples=2, intra_weight=0, inter_weight=0, negative_weight=0)
    total = correspondence_loss(anchor, None, GRID, chosen, nothing).total
    total.backward()
    assert total.item() == 0 and anchor.codes.grad is not None and not anchor.codes.grad.any()


def test_lengths_of_features_and_codes_do_not_matter_nor_does_the_order_of_images() -> None:
    s = CorrespondenceSettings(samples=3, negatives=2)
    anchor, positive, chosen = maps(1), maps(2), draw(3, s, generator(3))
    reference = correspondence_loss(anchor, positive, GRID, chosen, s).total.item()
    longer = View(anchor.features * 7, anchor.codes * 0.2, anchor.mask)
    assert correspondence_loss(longer, positive, GRID, chosen, s).total.item() == pytest.approx(
        reference, abs=1e-6
    )

    order = torch.tensor([2, 0, 1])
    inverse = torch.argsort(order)

    def reordered(side: View) -> View:
        assert side.mask is not None
        return View(side.features[order], side.codes[order], side.mask[order])

    moved = Draw(chosen.anchor[order], chosen.partner[order], inverse[chosen.negatives[:, order]])
    found = correspondence_loss(reordered(anchor), reordered(positive), GRID, moved, s)
    assert found.total.item() == pytest.approx(reference, abs=1e-6)


def test_agreeing_features_pull_codes_together_and_others_push_them_apart() -> None:
    s = CorrespondenceSettings(
        samples=2, pointwise=False, zero_clamp=False, inter_weight=0, negative_weight=0, intra_weight=1
    )
    chosen = draw(1, s, generator())
    one = torch.ones(1, 15, 3)
    codes = torch.randn(1, 15, 4, generator=generator(4))

    def loss(codes: torch.Tensor, features: torch.Tensor) -> float:
        return correspondence_loss(View(features, codes), None, GRID, chosen, s).total.item()

    together = codes[:, :1].expand(1, 15, 4)
    assert loss(together, one) == pytest.approx(-(1 - s.intra_shift), abs=1e-6)
    assert loss(codes, one) > loss(together, one)


def test_sampling_equals_grid_sample_also_outside_and_on_the_rim() -> None:
    tokens = torch.randn(2, 15, 4, generator=generator(1))
    coords = uniform_coords(2, 50, generator(2)) * 1.3
    coords[0, :4] = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, -1.0], [0.0, 0.0]])
    expected = functional.grid_sample(
        as_image(tokens), coords[:, :, None], padding_mode="border", align_corners=True
    )[..., 0].transpose(1, 2)
    torch.testing.assert_close(gather(tokens, *bilinear(coords, GRID)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 1)])
def test_sampling_works_on_grids_one_patch_wide(grid: tuple[int, int]) -> None:
    tokens = torch.arange(float(grid[0] * grid[1])).view(1, -1, 1)
    indices, weights = bilinear(uniform_coords(1, 20, generator()), grid)
    assert int(indices.max()) < tokens.shape[1]
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 20))
    assert torch.isfinite(gather(tokens, indices, weights)).all()


@pytest.mark.parametrize("batch", [2, 3, 4, 8])
def test_negatives_are_permutations_without_fixed_points(batch: int) -> None:
    drawn = derangements(batch, 200, generator())
    assert not (drawn == torch.arange(batch)).any()
    assert (drawn.sort(dim=1).values == torch.arange(batch)).all()


def test_negatives_are_drawn_uniformly() -> None:
    drawn = derangements(4, 9000, generator())
    _, counts = torch.unique(drawn, dim=0, return_counts=True)
    assert len(counts) == 9  # the derangements of four
    assert counts.min() > 850 and counts.max() < 1150


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_published_negatives_are_a_permutation_with_its_fixed_points_moved_on(batch: int) -> None:
    drawn = published_partners(batch, 300, generator(3))
    again, repeated = generator(3), 0
    for row in drawn.tolist():
        expected = torch.randperm(batch, generator=again).tolist()
        assert row == [(p + 1) % batch if p == i else p for i, p in enumerate(expected)]
        assert all(p != i for i, p in enumerate(row))
        repeated += len(set(row)) < batch
    assert (repeated > 50) == (batch > 2)  # two images can only be each other's partners


def test_a_single_image_is_its_own_negative_only_as_published() -> None:
    assert published_partners(1, 5, generator()).tolist() == [[0]] * 5
    anchor = maps(2, 1)
    losses = {}
    for how in ("derangement", "published"):
        settings = CorrespondenceSettings(
            negative_draw=how, intra_weight=0, inter_weight=0, negative_weight=1
        )
        losses[how] = correspondence_loss(anchor, None, GRID, draw(1, settings, generator(1)), settings)
    assert losses["derangement"].total == 0
    assert losses["published"].total != 0 and losses["published"].total == losses["published"].negative


def test_salient_positions_fall_on_salient_patches() -> None:
    salience = torch.zeros(2, *GRID, dtype=torch.bool)
    salience[0, 1, 4] = True  # the right end of the middle row; image 1 has none
    coords = salient_coords(salience, 2000, generator())
    hits = ((coords[0] - torch.tensor([1.0, 0.0])).abs() < 1e-6).all(-1).float().mean()
    assert float(hits) == pytest.approx(0.9, abs=0.03)
    assert coords.abs().max() <= 1
    assert len(torch.unique(coords[1], dim=0)) > 15
    settings = CorrespondenceSettings(samples=40)
    steered = draw(2, settings, generator(), (salience, salience)).anchor
    assert float((steered[0] == torch.tensor([1.0, 0.0])).all(-1).float().mean()) > 0.8


def test_cluster_loss_equals_the_slow_loop_and_only_moves_centroids() -> None:
    codes = torch.randn(20, 4, generator=generator(1)).requires_grad_()
    centroids = torch.randn(5, 4, generator=generator(2)).requires_grad_()
    expected = torch.zeros(())
    for code in codes.detach():
        cosines = [torch.dot(code, mu) / (code.norm() * mu.norm()) for mu in centroids]
        expected = expected - torch.stack(cosines).max() / 20
    loss = cosine_cluster_loss(codes, centroids)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    (slow,) = torch.autograd.grad(expected, centroids)
    loss.backward()
    assert codes.grad is None
    torch.testing.assert_close(centroids.grad, slow, rtol=1e-4, atol=1e-6)


def test_a_centroid_that_wins_nothing_gets_no_gradient() -> None:
    codes = torch.tensor([[1.0, 0.0], [0.9, 0.1]])
    centroids = torch.tensor([[1.0, 0.1], [-1.0, 0.0]], requires_grad=True)
    cosine_cluster_loss(codes, centroids).backward()
    assert centroids.grad is not None
    assert centroids.grad[0].any() and not centroids.grad[1].any()


def test_the_published_three_masks_are_independent_and_the_third_reaches_the_loss() -> None:
    head = build_head(6, Model(dim=4, nonlinear=True, dropout=0.5), 0).train()
    tokens = maps(1).features
    view = View.of(tokens, head, generator(8))
    again = generator(8)
    first, second = head.draw_masks(3, again)
    third = channel_mask(3, 6, 0.5, again)
    assert first is not None and second is not None and third is not None and view.mask is not None
    assert not torch.equal(first, second) and not torch.equal(first, third)
    torch.testing.assert_close(view.codes, head.project(tokens, first, second))
    torch.testing.assert_close(view.dropped, tokens * third)
    # the objective is the slow loop on these views
    s = CorrespondenceSettings(samples=2, negatives=2)
    config = RunConfig(loss=Loss(objective="correspondence", correspondence=s))
    found = Correspondence(config, 6)(Batch(view, view, GRID), head, generator(9)).item()
    assert found == pytest.approx(slow_loss(view, view, draw(3, s, generator(9)), s)["total"], abs=1e-6)


def test_what_stands_out_is_unlike_its_image() -> None:
    features = torch.ones(1, 15, 3)
    features[0, 7] = torch.tensor([1.0, -1.0, 0.0])
    assert standing_out(features, GRID).nonzero().tolist() == [[0, 1, 2]]
