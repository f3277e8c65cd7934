"""Are the extra terms the published formulas, and do they join any objective?"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from common.losses.base import Batch, View
from common.losses.extra_terms import (
    WithExtras,
    alignment_loss,
    build_objective,
    contrastive_crf_loss,
    crf_kernel,
    reconstruction_loss,
)
from common.losses.sampling import uniform_coords
from common.losses.smoothness import Smoothness
from common.models.head import build_head
from common.settings.load import load_config
from common.settings.objectives import Loss
from common.settings.unsupervised import Local
from tests.support.codes import draw

GRID = (2, 3)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def test_crf_equals_the_slow_loop() -> None:
    settings = Loss(crf_shift=0.3)
    positions = torch.tensor([[0.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.5, 0.5]])
    colours, codes = draw(1, 2, 4, 3) * 0.4, draw(2, 2, 4, 5)
    expected = 0.0
    for b, i, j in np.ndindex(2, 4, 4):
        place = float((positions[i] - positions[j]).square().sum())
        colour = float((colours[b, i] - colours[b, j]).square().sum())
        kernel = (
            10 * math.exp(-place / (2 * 0.5) - colour / (2 * 0.15)) + 3 * math.exp(-place / (2 * 0.05)) - 0.3
        )
        expected -= cosine(codes[b, i], codes[b, j]) * kernel / 32
    found = contrastive_crf_loss(codes, crf_kernel(positions, colours, settings))
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_reconstruction_equals_the_slow_loop_and_is_best_at_minus_one() -> None:
    decoder = torch.nn.Linear(4, 5)
    codes, features = draw(1, 2, 6, 4), draw(2, 2, 6, 5)
    pairs = [(decoder(codes[b, p]).detach(), features[b, p]) for b, p in np.ndindex(2, 6)]
    expected = -float(np.mean([cosine(*pair) for pair in pairs]))
    assert reconstruction_loss(codes, features, decoder).item() == pytest.approx(expected, abs=1e-6)
    perfect = reconstruction_loss(codes, decoder(codes) * 3, decoder)
    assert perfect.item() == pytest.approx(-1, abs=1e-6)


def test_alignment_equals_grid_sample() -> None:
    codes, other = draw(1, 2, 6, 4), draw(2, 2, 6, 4)
    coords = uniform_coords(2, 6, torch.Generator().manual_seed(0))
    image = codes.transpose(1, 2).reshape(2, 4, *GRID)
    sampled = torch.nn.functional.grid_sample(
        image, coords[:, :, None], padding_mode="border", align_corners=True
    )[..., 0].transpose(1, 2)
    expected = -torch.nn.functional.cosine_similarity(sampled, other, dim=2).mean()
    assert float(alignment_loss(codes, other, coords, GRID)) == pytest.approx(float(expected), abs=1e-6)


def test_a_mirrored_view_of_the_same_codes_aligns_perfectly() -> None:
    codes = draw(1, 1, 6, 4)
    ys, xs = torch.meshgrid(torch.linspace(-1, 1, 2), torch.linspace(-1, 1, 3), indexing="ij")
    mirrored_places = torch.stack([-xs, ys], dim=-1).view(1, 6, 2)
    mirrored = codes.view(1, 2, 3, 4).flip(2).reshape(1, 6, 4)
    assert float(alignment_loss(codes, mirrored, mirrored_places, GRID)) == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("objective", ["correspondence", "smoothness", "modularity"])
def test_extra_terms_join_any_objective(objective: str) -> None:
    base = {"loss.objective": objective, "model.dim": 4, "model.dropout": 0.0, "loss.samples": 2}
    base |= {"loss.codebook": 4, "loss.projection": 3}
    extras = {
        "loss.reconstruction-weight": 0.5,
        "loss.crf-weight": 0.1,
        "loss.augmentation-weight": 2.0,
        "cache.views": 1,
    }
    config = load_config(base | extras)
    plain, full = build_objective(load_config(base), 5), build_objective(config, 5)
    assert isinstance(full, WithExtras) and not isinstance(plain, WithExtras)
    head = build_head(5, config.model, 0)
    view = View.of(draw(1, 3, 6, 5), head, None)
    places = uniform_coords(3, 6, torch.Generator().manual_seed(0))
    colours = torch.rand(3, 6, 3, generator=torch.Generator().manual_seed(2))
    batch = Batch(view, view, GRID, colours, (View.of(draw(2, 3, 6, 5), head, None), places))
    for built in (plain, full):
        built.start_round(2, head, draw(3, 27, 4))
    found, alone = (o(batch, head, torch.Generator().manual_seed(0)).item() for o in (full, plain))
    assert full.decoder is not None
    expected = alone + 0.5 * reconstruction_loss(view.codes, view.features, full.decoder).item()
    aligned = alignment_loss(view.codes, batch.augmented[0].codes, places, GRID)  # type: ignore[index]
    expected += 2 * aligned.item() + 0.1 * full._crf(batch, torch.Generator().manual_seed(0)).item()
    assert found == pytest.approx(expected, abs=1e-4)
    assert full.wants_colours and full.wants_augmented
    names = set(full.state_dict())
    assert {"decoder.weight", "decoder.bias"} <= names
    assert {f"main.{name}" for name in plain.state_dict()} | {"decoder.weight", "decoder.bias"} == names
    assert len(full.groups(Local())) == len(plain.groups(Local())) + 1


def test_the_crf_term_measures_distance_in_published_pixels() -> None:
    """Neighbouring patches of a coarse grid are far apart on a map of 56 pixels."""
    config = load_config(
        {"loss.objective": "correspondence", "loss.crf-weight": 1.0, "model.dim": 4, "model.dropout": 0.0}
    )
    objective = build_objective(config, 5)
    assert isinstance(objective, WithExtras)
    view = View(draw(1, 1, 6, 5), torch.ones(1, 6, 4))
    batch = Batch(view, None, GRID, torch.full((1, 6, 3), 0.5))
    # equal codes, equal colours: only a patch with itself is near, kernel 10 + 3 on the diagonal
    assert objective._crf(batch, torch.Generator()).item() == pytest.approx(-13 * 6 / 36, abs=1e-4)


def test_starting_states_follow_from_the_seed() -> None:
    config = load_config({"loss.objective": "smoothness", "loss.reconstruction-weight": 1.0, "model.dim": 4})
    one, two = (build_objective(config, 5).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert isinstance(build_objective(load_config({"loss.objective": "smoothness"}), 5), Smoothness)
