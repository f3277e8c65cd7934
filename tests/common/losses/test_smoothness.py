"""Is the smoothness objective the published formula, and who learns from which of its terms?"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from common.losses.base import Batch, View
from common.losses.smoothness import (
    Smoothness,
    SmoothnessSettings,
    assignments,
    prototype_loss,
    smoothness_loss,
)
from common.models.head import build_head
from common.settings.load import load_config
from common.settings.unsupervised import Local
from tests.support.codes import cosine, draw


@pytest.mark.parametrize("pointwise", [True, False])
@pytest.mark.parametrize("partners", [[[2, 0, 1]], [[2, 0, 1], [1, 2, 0]], []])
def test_smoothness_equals_the_slow_loop(pointwise: bool, partners: list[list[int]]) -> None:
    settings = SmoothnessSettings(pointwise=pointwise, intra_shift=-0.02, negative_shift=0.5)
    features, soft = draw(1, 3, 4, 5) + 0.5, draw(2, 3, 4, 6).softmax(-1)
    f, y = features.numpy().astype(float), soft.numpy().astype(float)

    def term(order: list[int], shift: float) -> float:
        fd, yd = np.zeros((3, 4, 4)), np.zeros((3, 4, 4))
        for n, p, q in itertools.product(range(3), range(4), range(4)):
            fd[n, p, q] = cosine(f[n, p], f[order[n], q])
            yd[n, p, q] = cosine(y[n, p], y[order[n], q])
        if pointwise:
            fd = fd - fd.mean(2, keepdims=True) + fd.mean()
        return float(((fd - shift) * (1 - yd)).mean())

    expected = term([0, 1, 2], -0.02)
    if partners:
        expected += float(np.mean([term(order, 0.5) for order in partners]))
    found = smoothness_loss(features, soft, torch.tensor(partners).view(-1, 3).long(), settings)
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_like_patches_want_like_assignments() -> None:
    features = torch.eye(2)[[0, 0, 1, 1]].unsqueeze(0)
    none = torch.empty(0, 1, dtype=torch.long)
    good = torch.eye(2)[[0, 0, 1, 1]].unsqueeze(0)
    bad = torch.eye(2)[[0, 1, 0, 1]].unsqueeze(0)
    settings = SmoothnessSettings(intra_shift=0.3)
    assert smoothness_loss(features, good, none, settings) < smoothness_loss(features, bad, none, settings)
    swapped = good.flip(-1)  # the names of clusters do not matter
    assert float(smoothness_loss(features, swapped, none, settings)) == pytest.approx(
        float(smoothness_loss(features, good, none, settings))
    )


def test_assignment_and_data_term_equal_slow_loops() -> None:
    codes, student, teacher = draw(1, 6, 4), draw(2, 3, 4), draw(3, 3, 4)
    soft = assignments(codes, teacher, 0.1)
    expected = 0.0
    for row, code in enumerate(codes.numpy().astype(float)):
        to_teacher = [cosine(code, t) for t in teacher.numpy().astype(float)]
        weights = [math.exp(value / 0.1) for value in to_teacher]
        np.testing.assert_allclose(soft[row].numpy(), np.array(weights) / sum(weights), rtol=1e-4)
        to_student = [cosine(code, s) for s in student.numpy().astype(float)]
        target = int(np.argmax(to_teacher))
        expected -= to_student[target] - math.log(sum(math.exp(value) for value in to_student))
    assert float(prototype_loss(codes, student, teacher)) == pytest.approx(expected / 6, abs=1e-6)


def batch_for(seed: int = 0) -> tuple[Any, Any, Batch]:
    config = load_config(
        {
            "loss.objective": "smoothness",
            "model.dim": 4,
            "model.nonlinear": True,
            "model.clusters": 3,
            "model.dropout": 0.0,
        }
    )
    head = build_head(5, config.model, 0)
    return config, head, Batch(View.of(draw(seed, 4, 6, 5), head, None), None, (2, 3))


def test_prototypes_learn_from_the_data_term_only_and_the_head_from_smoothness_only() -> None:
    config, head, batch = batch_for()
    objective = Smoothness(config, 5)
    objective.start_round(1, head, draw(5, 3, 4))
    loss = objective(batch, head, torch.Generator().manual_seed(0))
    head_gradient = torch.autograd.grad(loss, head.linear.weight, retain_graph=True)[0]
    (prototype_gradient,) = torch.autograd.grad(loss, objective.prototypes)
    assert head_gradient.abs().sum() > 0 and prototype_gradient.abs().sum() > 0
    data = prototype_loss(batch.anchor.codes.flatten(0, 1), objective.prototypes, objective.teacher)
    torch.testing.assert_close(torch.autograd.grad(data, objective.prototypes)[0], prototype_gradient)


def test_the_teacher_is_what_was_received_and_follows_slowly() -> None:
    config, head, _ = batch_for()
    objective = Smoothness(config, 5)
    received = draw(5, 3, 4) * 3
    objective.start_round(1, head, received)
    before = objective.centroids().clone()
    torch.testing.assert_close(before.norm(dim=1), torch.ones(3))
    objective.after_step(head)
    expected = 0.998 * before + 0.002 * objective.prototypes.detach()
    torch.testing.assert_close(objective.centroids(), expected)
    assert set(objective.state_dict()) == {"prototypes"}
    assert objective.groups(Local(centroid_lr=0.5))[0]["lr"] == 0.5


def test_positions_are_thinned_out_but_all_are_used_where_there_are_few() -> None:
    """With samples^2 of at least all patches the random order does not change the loss."""
    config, head, batch = batch_for()
    objective = Smoothness(config, 5)
    objective.start_round(1, head, draw(5, 3, 4))
    one = Batch(
        View(batch.anchor.features[:1], batch.anchor.codes[:1]), None, batch.grid
    )  # one image: no partner to draw either
    losses = [float(objective(one, head, torch.Generator().manual_seed(seed)).detach()) for seed in range(3)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) == pytest.approx(losses[2], abs=1e-6)
