"""Local training of a head for one round, on frozen features, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from client.state import load_moments, moments_to_numpy, without_prefix
from client.statistics import received_head, sums_under
from common.features.source import Features, tokens_of
from common.losses.anchoring import Anchors
from common.losses.base import Batch, Objective, View, cosine_cluster_loss
from common.losses.extra_terms import build_objective
from common.losses.modularity import ModularitySettings, modularity_loss, one_per_cell
from common.models.head import SegmentationHead, load_numpy, state_to_numpy
from common.seeds import derive, torch_generator
from common.settings.schema import RunConfig
from common.settings.unsupervised import Local
from common.wire import Arrays

# the metrics of every round, whatever the settings: sites' figures can be averaged name by name
TRAINING_METRICS = (
    "loss",  # mean over the steps, of everything that trains the head
    "objective",  # thereof the self-supervised objective
    "prox",  # thereof FedProx
    "moon",  # thereof the model-contrastive term
    "mean_cosine",  # of all patches to their centroid, after training
    "displacement",  # of the centroids: Frobenius norms of the steps, summed
    "steps",
)


@dataclass(frozen=True)
class LocalResult:
    """What a round leaves behind at a site. The state stays there, the rest may travel."""

    head: Arrays
    centroids: np.ndarray  # float32 [K, D], as received where the server finds them by Lloyd
    counts: np.ndarray  # int64 [K], patches per cluster over the whole shard after training
    metrics: dict[str, float]
    shared: Arrays = field(default_factory=dict)  # of the objective
    state: Arrays = field(default_factory=dict)  # see `train_local`


class CentroidFit:
    """Moves a site's centroids: not at all (``fixed``), as the objective does, or by Adam."""

    def __init__(self, means: nn.Parameter, objective: Objective, config: RunConfig, *, fixed: bool) -> None:
        """Fit ``means`` [K, D] in place; ``fixed`` where the server finds them from sums."""
        self.means, self.objective, self.settings = means, objective, config
        self.optimizer = torch.optim.Adam([means], lr=config.local.centroid_lr)
        self.fixed = fixed
        self._adopt()

    def _adopt(self) -> bool:
        """Copy the objective's own centroids, if it keeps any."""
        own = None if self.fixed else self.objective.centroids()
        if own is not None:
            self.means.data.copy_(own)
        return own is not None

    def step(self, codes: torch.Tensor, batch: Batch, generator: torch.Generator) -> float:
        """Move once, on detached codes [B, n, D]; return how far (Frobenius norm)."""
        if self.fixed:
            return 0.0
        before = self.means.detach().clone()
        if not self._adopt():
            self.optimizer.zero_grad(set_to_none=True)
            self._loss(codes, batch, generator).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return float(torch.linalg.vector_norm(self.means.detach() - before))

    def _loss(self, codes: torch.Tensor, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        if self.settings.centroids.local == "cosine":
            return cosine_cluster_loss(codes.flatten(0, 1), self.means)
        chosen = one_per_cell(batch.grid, self.settings.loss.own(ModularitySettings).cell, generator).to(
            codes.device
        )
        return modularity_loss(codes[:, chosen], self.means)


def epochs_of(images: int, batch: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield batches without end: every image once per pass, in a fresh order, the last batch maybe smaller."""
    while True:
        order = torch.randperm(images, generator=generator).tolist()
        for start in range(0, images, batch):
            yield order[start : start + batch]


def count_steps(local: Local, images: int) -> int:
    """Return the optimizer steps of a round."""
    return local.steps or local.epochs * math.ceil(images / local.batch)


def train_local(
    features: Features,
    head: Mapping[str, np.ndarray],
    centroids: np.ndarray,
    config: RunConfig,
    round_number: int,
    site: str,
    state: Mapping[str, np.ndarray] | None = None,
    *,
    shared: Mapping[str, np.ndarray] | None = None,
    fixed_centroids: bool = False,
    labels: Callable[[], np.ndarray] | None = None,
) -> LocalResult:
    """Train head and centroids on a site's features for one round.

    ``head`` and ``centroids`` [K, D] are those the server sent, ``shared`` the shared arrays of the
    objective (empty: it starts fresh). ``state`` is what this site's last round returned, empty in its
    first: Adam's moments (``local.keep-optimizer``) and the previous local head (``local.moon-weight``).

    All draws follow from (seed, site, round), so that other sites do not change them. With
    ``fixed_centroids`` the centroids stay as received: the server finds new ones from the sites' sums.
    ``labels`` gives the shares of classes [N, h*w, C + 1] to an objective that compares them in place of features.
    Raises ValueError for an empty shard, for arrays that do not fit, and where the loss stops being finite.
    """
    if len(features) == 0:
        raise ValueError(f"Site {site} has no image to train on.")
    local, device = config.local, features.device
    generator = torch_generator(config.seed, "train", site, round_number)
    model = received_head(features, head, config).train()
    objective = build_objective(config, features.channels)
    if shared:
        load_numpy(objective, shared)
    objective.to(device).train()
    means = nn.Parameter(torch.from_numpy(np.array(centroids, dtype=np.float32)).to(device))
    _check_received(model, means, site, round_number)

    groups: list[dict[str, object]] = [{"params": list(model.parameters()), "lr": local.lr}]
    optimizer = torch.optim.Adam(groups + objective.groups(local), lr=local.lr)
    objective.start_round(round_number, model, means.detach())
    centroids_fit = CentroidFit(means, objective, config, fixed=fixed_centroids)
    if state and local.keep_optimizer:
        load_moments(optimizer, state, "adam")
        if round_number != config.centroids.reset_round:  # they are new
            load_moments(centroids_fit.optimizer, state, "adam-centroids")
    anchors = Anchors(model, without_prefix(state or {}, "previous/"), local)

    neighbours = _neighbour_table(features, config, site) if objective.wants_positives else None
    signal = labels() if objective.wants_labels and labels is not None else None
    batches = epochs_of(len(features), local.batch, generator)
    steps = count_steps(local, len(features))
    sums = dict.fromkeys(TRAINING_METRICS, 0.0)
    for step in range(steps):
        indices = next(batches)
        batch = _batch_of(indices, features, neighbours, objective, model, generator, signal)
        terms = {"objective": objective(batch, model, generator)}
        terms |= anchors.terms(model, batch.anchor.features, batch.anchor.codes)
        loss = torch.stack(list(terms.values())).sum()
        value = loss.item()
        if not math.isfinite(value):
            where = f"Site {site}, round {round_number}, step {step + 1} of {steps}"
            raise ValueError(f"{where}: the loss is {value}; {_likely_cause(batch, local)}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if local.clip_norm:
            every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(every, local.clip_norm)
        optimizer.step()
        objective.after_step(model)
        sums["displacement"] += centroids_fit.step(batch.anchor.codes.detach(), batch, generator)
        sums["loss"] += value / steps
        for name, term in terms.items():
            sums[name] += term.item() / steps

    trained_means = means.detach().cpu().numpy()
    totals = sums_under(features, model, trained_means, config)
    metrics = sums | {"mean_cosine": totals.mean_cosine, "steps": float(steps)}
    trained = state_to_numpy(model)
    kept: Arrays = {}
    if local.keep_optimizer:
        kept |= moments_to_numpy(optimizer, "adam")
        kept |= moments_to_numpy(centroids_fit.optimizer, "adam-centroids")
    if local.moon_weight:
        kept |= {f"previous/{name}": array for name, array in trained.items()}
    return LocalResult(
        head=trained,
        centroids=trained_means,
        counts=totals.counts,
        metrics=metrics,
        shared=state_to_numpy(objective),
        state=kept,
    )


def _batch_of(
    indices: list[int],
    features: Features,
    neighbours: np.ndarray | None,
    objective: Objective,
    model: SegmentationHead,
    generator: torch.Generator,
    signal: np.ndarray | None = None,
) -> Batch:
    """Fetch images, a neighbor of each from the table [N, k], and what only some objectives want.

    Where ``signal`` [N, h*w, S] is given, views show it in place of the features that codes were made from.
    """
    positive = colors = augmented = None
    tokens = tokens_of(features, indices)
    # the order of all draws from the generator is part of the results: pairs, anchors, positives, augmented images
    if neighbours is not None:
        drawn = torch.randint(neighbours.shape[1], (len(indices),), generator=generator).numpy()
        partners = neighbours[indices, drawn].tolist()
        paired = tokens_of(features, partners)
    anchor = View.of(tokens, model, generator)
    if neighbours is not None:
        positive = View.of(paired, model, generator)
    if signal is not None:
        anchor = replace(anchor, features=torch.from_numpy(signal[indices]).to(tokens), mask=None)
        if positive is not None:
            positive = replace(positive, features=torch.from_numpy(signal[partners]).to(tokens), mask=None)
    if objective.wants_colours:
        colors = features.colours(indices)
    if objective.wants_augmented:
        tensors, places = features.augmented(indices, generator)
        augmented = View.of(tensors.flatten(2).transpose(1, 2), model, generator), places
    return Batch(anchor, positive, features.grid, colors, augmented)


def _neighbour_table(features: Features, config: RunConfig, site: str) -> np.ndarray | None:
    """Return [N, k] possible positives; fewer than wanted in a small shard, none for a single image.

    The same table in every round, whatever channels are dropped: the draw knows seed and site only.
    """
    available = min(config.local.neighbours, len(features) - 1)
    if not available:
        return None
    return features.neighbours(
        available, config.local.neighbour_dropout, derive(config.seed, "neighbours", site)
    )


def _check_received(model: SegmentationHead, means: torch.Tensor, site: str, round_number: int) -> None:
    if means.dim() != 2 or means.shape[1] != model.dim:
        raise ValueError(
            f"Centroids of shape {list(means.shape)} were received; [K, {model.dim}] were expected."
        )
    for name, value in [*model.named_parameters(), ("centroids", means)]:
        if not torch.isfinite(value).all():
            raise ValueError(
                f"Site {site}, round {round_number}: the received array '{name}' holds NaN or infinity."
            )


def _likely_cause(batch: Batch, local: Local) -> str:
    """Say why a loss is not finite: broken features, or else steps that are too large."""
    seen = [images.features for images in (batch.anchor, batch.positive) if images is not None]
    if all(bool(torch.isfinite(features).all()) for features in seen):
        return f"the learning rate local.lr = {local.lr:g} is probably too large."
    return "the cached features hold NaN or infinity: delete this site's feature cache."
