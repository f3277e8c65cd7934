"""Computes the golden figures of every objective and of every loss of networks in one step, on arrays drawn once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch

from client.work.trainer import train_local
from common.clustering.spectral import patch_scatter, separating_projection
from common.features.source import Features, Views
from common.losses.base import Batch, View
from common.losses.extra_terms import build_objective
from common.losses.reductions import labelled_loss, max_square_loss
from common.losses.self_training import distillation_loss, entropy_loss, kept_pixels, pseudo_label_loss
from common.losses.spectral import SpectralSettings
from common.models.head import build_head, init_centroids, state_to_numpy
from common.settings.load import load_config
from common.settings.network import Reduction
from common.settings.schema import RunConfig
from tests.golden.figures import Golden, Tolerance, hash_of

TOLERANCE = Tolerance(relative=3e-4, absolute=1e-6)
"""float32 sums of some thousand terms; the floor is for gradients that cancel out."""

GRID, CHANNELS, DIM, CLUSTERS = (5, 6), 12, 6, 4
IMAGES = 8

BASE: dict[str, Any] = {
    "model.dim": DIM,
    "model.clusters": CLUSTERS,
    "loss.samples": 4,
    "loss.negatives": 2,
    "loss.codebook": 6,
    "loss.projection": 5,
    "loss.crf-samples": 20,
    "local.steps": 2,
    "local.batch": 4,
    "local.neighbours": 2,
    "centroids.merge": "mean",
}

WIDE_CRF: dict[str, Any] = {"loss.crf-alpha": 200.0, "loss.crf-beta": 1.0, "loss.crf-gamma": 200.0}
"""Kernels that reach from a patch of `GRID` to the next ones; those of a fine grid would see the patch alone."""

STEPS: dict[str, dict[str, Any]] = {
    "correspondence": {},
    "correspondence/nonlinear": {"model.nonlinear": True},
    "correspondence/auto-shift": {"loss.shift": "auto"},
    "correspondence/published-draw": {"loss.negative-draw": "published"},
    "correspondence/salience": {"loss.salience": True},
    "correspondence/not-pointwise": {"loss.pointwise": False},
    "correspondence/no-zero-clamp": {"loss.zero-clamp": False},
    "correspondence/stabilize": {"loss.stabilize": True},
    "correspondence/reconstruction": {"loss.reconstruction-weight": 0.5},
    "correspondence/augmentation": {"loss.augmentation-weight": 0.5, "cache.views": 1},
    "correspondence/crf": {"loss.crf-weight": 0.5} | WIDE_CRF,
    "smoothness": {"loss.objective": "smoothness"},
    "modularity/codebook": {"loss.objective": "modularity", "loss.codebook-rounds": 2},
    "modularity/contrast": {"loss.objective": "modularity"},
    "anchors/prox": {"local.prox-mu": 5.0},
    "anchors/moon": {"local.moon-weight": 0.5},
    "local/keep-optimizer": {"local.keep-optimizer": True},
    "local/clip-norm": {"local.clip-norm": 0.05},
    "local/centroids-by-modularity": {"centroids.local": "modularity"},
    "local/neighbour-dropout": {"local.neighbour-dropout": 0.5},
}  # fmt: skip
"""What each case adds to `BASE` and objective correspondence."""


def settings_of(case: str, **changes: Any) -> RunConfig:
    """Return the settings of one of `STEPS`, with further changes."""
    return load_config({"loss.objective": "correspondence"} | BASE | STEPS[case] | changes)


def drawn_features() -> Features:
    """Return features of eight images in memory, with colours and one augmented view each.

    Patches come in regions that share feature and colour, so that neighbours of like colour exist.
    """
    rng = np.random.default_rng(2)
    patches = GRID[0] * GRID[1]
    modes = rng.standard_normal((4, CHANNELS)) * 2
    tints = rng.random((4, 3))
    region = np.add.outer(np.arange(GRID[0]) // 2, np.arange(GRID[1]) // 3).ravel() % 4
    kinds = (region[None] + np.arange(IMAGES)[:, None]) % 4
    tokens = (modes[kinds] + 0.5 * rng.standard_normal((IMAGES, patches, CHANNELS))).astype(np.float32)
    colours = np.clip(tints[kinds] + 0.1 * rng.standard_normal((IMAGES, patches, 3)), 0, 1)
    return Features(
        tokens,
        tokens.mean(axis=1, dtype=np.float32),
        GRID,
        "",
        colours=colours.astype(np.float16),
        views=Views(
            (tokens + 0.2 * rng.standard_normal(tokens.shape))[None].astype(np.float32), seed=0, tiled=False
        ),
    )


def one_step(case: str) -> dict[str, Any]:
    """Return an objective's loss on one batch, and the norm of its gradient at each parameter."""
    config, features = settings_of(case), drawn_features()
    generator = torch.Generator().manual_seed(3)
    head = build_head(CHANNELS, config.model, 0).train()
    objective = build_objective(config, CHANNELS).train()
    means = torch.from_numpy(init_centroids(CLUSTERS, DIM, 1))
    objective.start_round(2, head, means)

    def view(indices: list[int]) -> View:
        return View.of(features.batch(indices).flatten(2).transpose(1, 2), head, generator)

    augmented, places = features.augmented([0, 1, 2, 3], generator)
    batch = Batch(
        view([0, 1, 2, 3]),
        view([4, 5, 6, 7]),
        GRID,
        features.colours([0, 1, 2, 3]),
        (View.of(augmented.flatten(2).transpose(1, 2), head, generator), places),
    )
    loss = objective(batch, head, generator)
    loss.backward()
    modules = {"head": head, "objective": objective}
    gradients = {
        f"{where}.{name}": float(parameter.grad.double().norm())
        for where, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    return {"loss": loss.item(), "gradients": gradients}


def local_rounds(case: str, **changes: Any) -> dict[str, Any]:
    """Return the metrics of two rounds of two steps at one site, and how far each took the head.

    The second one starts halfway back, as a mean with a site that stood still: MOON needs a head unlike one's own.
    """
    config, features = settings_of(case, **changes), drawn_features()
    head = state_to_numpy(build_head(CHANNELS, config.model, 0))
    means = init_centroids(CLUSTERS, DIM, 1)
    found: dict[str, Any] = {}
    state: dict[str, np.ndarray] = {}
    shared: dict[str, np.ndarray] = {}
    for number in (1, 2):
        result = train_local(features, head, means, config, number, "north", state, shared=shared)
        moved = {key: float(np.linalg.norm(result.head[key] - head[key])) for key in head}
        head = {key: (result.head[key] + head[key]) / 2 for key in head}
        means, state, shared = result.centroids, result.state, result.shared
        found[f"round-{number}"] = {"metrics": result.metrics, "moved": moved}
    return found


def spectral_figures() -> dict[str, Any]:
    """Return the spectral projection [D, C], its bias and eigenvalues, and the weight of all pairs, by whitening."""
    found: dict[str, Any] = {}
    for name, given in {"as-is": {}, "whiten": {"whiten": 0.5}}.items():
        settings = SpectralSettings(**given)
        scatter = patch_scatter(drawn_features(), settings.tolerance)
        weight, bias, values = separating_projection(scatter, DIM, settings.whiten, settings.ridge)
        found[name] = {"values": values, "weight": weight, "bias": bias, "pair-weight": scatter.weight}
    return found


def drawn_logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits of a student and of a teacher [2, 4, 12, 16], and labels [2, 12, 16], some ignored.

    They are multiples of 1/64, so that no CPU finds other pixels surest, and no class has a label at all.
    """
    rng = np.random.default_rng(4)
    student, teacher = (np.round(64 * rng.standard_normal((2, 4, 12, 16))) / 64 for _ in range(2))
    labels = rng.choice([0, 1, 3, 255], p=[0.5, 0.3, 0.1, 0.1], size=(2, 12, 16))
    as_logits = (torch.from_numpy(array.astype(np.float32)) for array in (student, 2 * teacher))
    return next(as_logits), next(as_logits), torch.from_numpy(labels)


def network_figures() -> dict[str, Any]:
    """Return the loss and the norm of its gradient at the logits, of all that judges a network's prediction."""
    student, teacher, labels = drawn_logits()
    crucial = torch.tensor([False, False, False, True])
    kept = kept_pixels(teacher, confidence=0.9, fraction=0.3)
    found: dict[str, Any] = {"kept-pixels": int((kept != 255).sum())}

    def add(name: str, loss_of: Any) -> None:
        logits = student.clone().requires_grad_()
        loss = loss_of(logits)
        loss.backward()
        assert logits.grad is not None
        found[name] = {"loss": loss.item(), "gradient": float(logits.grad.double().norm())}

    for kind in get_args(Reduction.model_fields["kind"].annotation):
        for given in ({}, {"scope": "batch"}, {"denominator": "all"}):
            reduction = Reduction(kind=kind, **given)  # type: ignore[arg-type]
            name = "/".join(["reduction", kind, *given.values()])
            add(name, lambda logits, r=reduction: labelled_loss(logits, labels, r, crucial))
    capped = Reduction(kind="inverse-frequency", power=0.5, cap=1.5)
    add("reduction/inverse-frequency/capped", lambda logits: labelled_loss(logits, labels, capped))
    lovasz = Reduction(lovasz_weight=0.5)
    add("reduction/mean/lovasz", lambda logits: labelled_loss(logits, labels, lovasz))
    for over in ("all", "kept"):
        add(f"pseudo-labels/{over}", lambda logits, o=over: pseudo_label_loss(logits, kept, o))
    add("distillation", lambda logits: distillation_loss(logits, teacher, 0.5, kept != 255))
    add("entropy", entropy_loss)
    add("max-square", max_square_loss)
    return found


def golden_objectives() -> list[Golden]:
    """Return what the files on objectives and on the losses of networks pin."""
    steps = {case: one_step(case) for case in STEPS if not case.startswith(("anchors/", "local/"))}
    rounds = {case: local_rounds(case) for case in STEPS}
    figures = {"spectral": spectral_figures(), "one-step": steps, "two-rounds": rounds}
    golden = [
        Golden("objectives", figures, TOLERANCE),
        Golden("network-losses", network_figures(), TOLERANCE),
    ]
    return [replace(one, hashes={"figures": hash_of(one.figures)}) for one in golden]
