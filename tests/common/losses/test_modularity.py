"""Are the codebook's modularity and the student's contrast the published formulas?"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from common.losses.base import Batch, View
from common.losses.modularity import (
    BANK_PER_CODE,
    Modularity,
    contrast,
    modularity_loss,
    modularity_matrix,
    one_per_cell,
)
from common.models.head import build_head
from common.settings.load import load_config
from tests.support.codes import cosine, draw, generator


def test_modularity_equals_the_slow_loop() -> None:
    x, c = draw(1, 2, 5, 4), draw(2, 3, 4)
    expected = 0.0
    for image in x.numpy().astype(float):
        graph = np.zeros((5, 5))
        for i, j in itertools.permutations(range(5), 2):
            graph[i, j] = max(cosine(image[i], image[j]), 0)
        degree, edges = graph.sum(1), graph.sum()
        for i, j in itertools.product(range(5), range(5)):
            shared = max(
                math.tanh(max(cosine(image[i], m), 0) * max(cosine(image[j], m), 0) / 0.1)
                for m in c.numpy().astype(float)
            )
            expected -= (graph[i, j] - degree[i] * degree[j] / edges) / edges * shared / 2
    assert float(modularity_loss(x, c)) == pytest.approx(expected, abs=1e-6)


def test_gradient_equals_that_of_the_maximum_over_all_codes() -> None:
    x = draw(1, 2, 20, 4)  # more patches than one chunk
    fast, slow = (draw(2, 6, 4).requires_grad_() for _ in range(2))
    modularity_loss(x, fast).backward()  # type: ignore[no-untyped-call]
    unit = torch.nn.functional.normalize
    members = (unit(x, dim=2) @ unit(slow, dim=1).T).clamp(min=0)
    shared = torch.tanh(members[:, :, None] * members[:, None] / 0.1).max(dim=3).values
    (-(modularity_matrix(x) * shared).sum((1, 2)).mean()).backward()  # type: ignore[no-untyped-call]
    assert fast.grad is not None and slow.grad is not None
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-4, atol=1e-7)


def test_modularity_matrix_sums_to_zero_and_survives_an_image_without_edges() -> None:
    weights = modularity_matrix(draw(1, 3, 6, 4))
    torch.testing.assert_close(weights.sum(2), torch.zeros(3, 6), atol=1e-6, rtol=0)
    lonely = modularity_matrix(torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]))
    assert not lonely.any()


def test_codes_on_the_communities_beat_codes_across_them() -> None:
    x = torch.eye(2)[[0, 0, 0, 1, 1, 1]].unsqueeze(0)
    communities, across = torch.eye(2), torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    assert modularity_loss(x, communities) < modularity_loss(x, across) - 0.1
    assert float(modularity_loss(x, communities.flip(0) * 7)) == pytest.approx(
        float(modularity_loss(x, communities))
    )


def test_contrast_equals_the_slow_loop() -> None:
    student, teacher = draw(1, 2, 3, 4), draw(2, 6, 4)
    alike = torch.empty(2, 3, 6).uniform_(-0.5, 1, generator=generator(3))
    excluded = torch.zeros(2, 3, 6, dtype=torch.bool)
    excluded[0, 0, 0] = excluded[1, 2, 5] = True
    per_image = []
    for b in range(2):
        costs = []
        for i in range(3):
            s = [cosine(student[b, i].double().numpy(), t.double().numpy()) / 0.07 for t in teacher]
            allowed = [j for j in range(6) if not excluded[b, i, j]]
            positive = [j for j in allowed if alike[b, i, j] > 0.3]
            negative = [j for j in allowed if alike[b, i, j] < 0.1]
            total = sum(math.exp(s[j]) for j in positive + negative)
            costs += [-math.log(math.exp(s[j]) / total) for j in positive]
        per_image.append(np.mean(costs))
    found = contrast(student, teacher, alike, excluded)
    assert found is not None
    assert float(found) == pytest.approx(float(np.mean(per_image)), rel=1e-5)


def test_contrast_without_a_positive_pair_is_left_out_not_nan() -> None:
    student = draw(1, 2, 3, 4).requires_grad_()
    alike = torch.zeros(2, 3, 6)
    assert contrast(student, draw(2, 6, 4), alike) is None
    alike[0, 0, 0] = 1  # one image has a positive, in one row only
    loss = contrast(student, draw(2, 6, 4), alike)
    assert loss is not None
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None and torch.isfinite(student.grad).all()
    assert student.grad[0, 0].any() and not student.grad[1].any()


@pytest.mark.parametrize(("grid", "side", "count"), [((4, 4), 2, 4), ((3, 5), 2, 6), ((3, 5), 1, 15)])
def test_one_patch_of_every_cell(grid: tuple[int, int], side: int, count: int) -> None:
    chosen = one_per_cell(grid, side, generator())
    cells = {(int(p) // grid[1] // side, int(p) % grid[1] // side) for p in chosen}
    assert len(chosen) == len(cells) == count
    draws = {tuple(one_per_cell(grid, side, generator(seed)).tolist()) for seed in range(20)}
    assert (len(draws) == 1) == (side == 1)


def objective_and_batch() -> tuple[Modularity, torch.nn.Module, Batch]:
    config = load_config(
        {
            "loss.objective": "modularity",
            "model.nonlinear": True,
            "model.dim": 4,
            "loss.codebook": 6,
            "loss.projection": 3,
        }
    )
    head = build_head(5, config.model, 0).train()
    view = View.of(draw(1, 3, 12, 5), head, generator())
    return Modularity(config, 5), head, Batch(view, None, (3, 4))


def test_the_first_round_fits_the_codebook_and_later_ones_the_student() -> None:
    objective, head, batch = objective_and_batch()
    centroids = draw(4, 2, 4)
    objective.start_round(1, head, centroids)  # type: ignore[arg-type]
    objective(batch, head, generator()).backward()
    assert objective.codebook.grad is not None and objective.codebook.grad.any()
    assert all(p.grad is None for p in [*head.parameters(), *objective.projection.parameters()])
    objective.zero_grad(set_to_none=True)
    objective.start_round(2, head, centroids)  # type: ignore[arg-type]
    objective(batch, head, generator()).backward()
    assert objective.codebook.grad is None
    assert all(p.grad is not None for p in [*head.parameters(), *objective.projection.parameters()])
    assert {name.split(".")[0] for name in objective.state_dict()} == {"codebook", "projection"}


def test_the_teacher_follows_and_the_bank_keeps_the_newest_of_each_code() -> None:
    objective, head, _ = objective_and_batch()
    objective.start_round(2, head, draw(4, 2, 4))  # type: ignore[arg-type]
    with torch.no_grad():
        head.linear.bias += 1.0  # type: ignore[operator,union-attr]
    objective.after_step(head)  # type: ignore[arg-type]
    assert objective.teacher is not None
    moved = head.linear.bias - objective.teacher[0].linear.bias  # type: ignore[operator,union-attr]
    torch.testing.assert_close(moved.detach(), torch.full((4,), 0.99))

    for number in range(150):  # each turn adds a half: keys of code 0, numbered
        objective._remember(torch.full((4, 3), float(number)), torch.tensor([0, 0, 0, 0]), generator(number))
        objective._remember(torch.full((2, 3), -1.0), torch.tensor([5, 5]), generator(number))
    assert objective.bank is not None
    keys, codes = objective.bank
    assert int((codes == 0).sum()) == int((codes == 5).sum()) == BANK_PER_CODE
    assert float(keys[codes == 0].min()) == 100  # two a turn: the last fifty turns are left
    assert sorted(keys[codes == 0][:, 0].tolist()) == keys[codes == 0][:, 0].tolist()
