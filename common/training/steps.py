"""Optimizer steps of a whole network and their learning rate schedules, whoever says what the loss is.

`Stepper` turns a loss into one step: scaled gradients on CUDA, FedProx, a learning rate that follows the whole run.
`train_steps` drives it with labelled batches, for pretraining and for supervised sites alike; self-training has
losses of its own and drives a `Stepper` itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import nn

from common.data.data_loader import ImageBatch
from common.models.network import SegmentationNetwork
from common.models.parameter_groups import start_training
from common.settings.network import Sgd
from common.training.clock import Clock


def learning_rate(sgd: Sgd, step: int, total: int) -> float:
    """Return the learning rate of one step.

    With W = warmup * total, rounded, the first W steps rise in a line, (step + 1) / (W + 1); the schedule
    covers the others. With p the share of those that lies behind, it multiplies ``sgd.lr`` by 1 (constant),
    (1 - p)^power (poly; Liu et al., "ParseNet", 2015), (1 + cos(pi p)) / 2 (cosine) or 1 - p (linear).

    Args:
        sgd: the settings.
        step: number of the step in the whole run, from 0.
        total: steps of the whole run.

    Raises ValueError for a step outside of the run.
    """
    if not 0 <= step < total:
        raise ValueError(f"step {step} is outside of a run of {total} steps, which are counted from 0")
    warmup = round(sgd.warmup * total)
    if step < warmup:
        return sgd.lr * (step + 1) / (warmup + 1)
    share = (step - warmup) / (total - warmup)
    return sgd.lr * _FACTORS[sgd.schedule](sgd, share)


# over all steps of a run: a federated run has many short trainings, and each starts where the rounds before it ended
_FACTORS: dict[str, Callable[[Sgd, float], float]] = {
    "constant": lambda _sgd, _share: 1.0,
    "poly": lambda sgd, share: float((1 - share) ** sgd.power),
    "cosine": lambda _sgd, share: (1 + math.cos(math.pi * share)) / 2,
    "linear": lambda _sgd, share: 1 - share,
}


# First factor on a loss in mixed precision. A stepper lives for a round, and each step that overflows is lost:
# torch's 2^16 overflows on this network at once, while even a factor of 1 loses no gradient to underflow.
LOSS_SCALE = 2.0**10

# decay of Adam's second moment, as its authors and everybody else have it
SECOND_MOMENT = 0.999


@dataclass(frozen=True)
class Anchor:
    """FedProx (Li et al., 2020): mu / 2 |w - w_0|^2 is added to the loss of every step.

    ``weights`` are w_0 by name, as received; a parameter that is not among them is not pulled.
    """

    mu: float
    weights: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TrainedSteps:
    """What some steps cost: mean loss, mean FedProx term, steps asked for, and those lost to overflow."""

    loss: float
    prox: float
    steps: int
    skipped: int


def make_optimizer(model: SegmentationNetwork, sgd: Sgd) -> torch.optim.Optimizer:
    """Return the optimiser of all parameters that ask for a gradient, without any momentum yet.

    Two groups, backbone and head; ``factor`` of a group is its learning rate in multiples of the schedule's.
    (torch imports its compiler with the first optimiser of a process. Torchvision, which built the backbone, has
    imported it already, hence an optimiser of our own would save nothing.)
    """
    groups = [
        {"params": [p for p in part.parameters() if p.requires_grad], "factor": factor}
        for part, factor in ((model.backbone, 1.0), (model.head, sgd.head_factor))
    ]
    groups = [group for group in groups if group["params"]]
    if sgd.algorithm == "sgd":
        return torch.optim.SGD(groups, lr=sgd.lr, momentum=sgd.momentum, weight_decay=sgd.weight_decay)
    kind = torch.optim.Adam if sgd.algorithm == "adam" else torch.optim.AdamW
    return kind(groups, lr=sgd.lr, betas=(sgd.momentum, SECOND_MOMENT), weight_decay=sgd.weight_decay)


def uses_float16(sgd: Sgd, device: str) -> bool:
    """Tell whether a kind of device ("cuda", "cpu") computes in float16: on a CPU that would be slower."""
    return sgd.mixed_precision and device == "cuda"


class Stepper:
    """Optimiser, schedule, mixed precision and FedProx of one training, a step at a time.

        with stepper.autocast():
            logits = model(images)
        value = stepper.step(loss_of(logits), images)

    Attributes:
        taken: steps so far, those lost to overflow included.
        skipped: steps whose gradients overflowed float16: they change the loss scale and not the network.
        prox: FedProx terms of all steps so far, summed.
    """

    def __init__(
        self,
        model: SegmentationNetwork,
        sgd: Sgd,
        *,
        first_step: int,
        total_steps: int,
        seed: int,
        freeze: str = "none",
        anchor: Anchor | None = None,
        clip_norm: float = 0.0,
    ) -> None:
        """Put ``model`` into training mode where it is.

        Args:
            model: with the weights to start from, on its device.
            sgd: settings of the optimiser.
            first_step: steps of the run that lie behind, for the schedule.
            total_steps: steps of the whole run, all rounds.
            seed: of the dropout.
            freeze: what stays as received (`scopes.start_training`).
            anchor: FedProx, if any.
            clip_norm: largest norm of a step's gradient; 0: no limit.

        Raises ValueError for an anchor with weights that the network has not.
        """
        start_training(model, freeze)
        model.seed_dropout(seed)
        self.model, self.sgd = model, sgd
        self.first_step, self.total_steps = first_step, total_steps
        self.clip_norm = clip_norm
        self.taken = self.skipped = 0
        self.prox = 0.0
        self.optimizer = make_optimizer(model, sgd)
        self._mu = anchor.mu if anchor else 0.0
        self._moving, self._origin = _anchored(model, anchor)
        self._device = model.mean.device.type
        self.mixed = uses_float16(sgd, self._device)
        self._scaler = torch.amp.GradScaler(self._device, init_scale=LOSS_SCALE, enabled=self.mixed)
        self._scale = self._scaler.get_scale()
        self.clock = Clock()

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Return the context for forward passes: float16 where it pays, on CUDA alone."""
        with self.clock.part("forward"), torch.autocast(self._device, torch.float16, enabled=self.mixed):
            yield

    def step(self, loss: torch.Tensor, images: torch.Tensor | None = None) -> float:
        """Take one step down the gradient of ``loss`` (a scalar) and return its value, FedProx not included.

        ``images`` help to name the cause of a failure. Raises ValueError where the loss is not finite; the
        parameters are then as they were before.
        """
        with self.clock.part("backward"):
            return self._step(loss, images)

    def _step(self, loss: torch.Tensor, images: torch.Tensor | None) -> float:
        rate = learning_rate(self.sgd, self.first_step + self.taken, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        scaled = self._scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]
        value = loss.item()  # after the backward pass was queued, so that a GPU does not wait for us
        if not math.isfinite(value):
            self.optimizer.zero_grad(set_to_none=True)  # parameters stay as they were before this step
            where = (
                f"Step {self.taken + 1} of this training (step {self.first_step + self.taken + 1} of the run)"
            )
            raise ValueError(f"{where}: the loss is {value}; {self._likely_cause(images)}.")
        self._scaler.unscale_(self.optimizer)
        if self._mu:
            self.prox += self._pull()
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        before, self._scale = self._scale, self._scaler.get_scale()
        self.skipped += self._scale < before  # a step was left out just where the factor fell
        self.optimizer.zero_grad(set_to_none=True)
        self.taken += 1
        return value

    @torch.no_grad()
    def _pull(self) -> float:
        """Add mu (w - w_0) to the gradients and return mu / 2 |w - w_0|^2.

        In closed form rather than through the loss: exact in mixed precision, and without a graph.
        """
        apart = torch._foreach_sub(self._moving, self._origin)
        for parameter, difference in zip(self._moving, apart, strict=True):
            if parameter.grad is None:
                parameter.grad = self._mu * difference
            else:
                parameter.grad.add_(difference, alpha=self._mu)
        return self._mu / 2 * torch.stack(torch._foreach_norm(apart)).square().sum().item()

    def _likely_cause(self, images: torch.Tensor | None) -> str:
        if images is not None and not bool(torch.isfinite(images).all()):
            return "the images hold NaN or infinity"
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            return f"the weights are not finite either, so sgd.lr = {self.sgd.lr:g} is probably too large"
        if self.mixed:
            return "float16 may have overflowed: lower sgd.lr or set sgd.mixed-precision to false"
        return f"sgd.lr = {self.sgd.lr:g} is probably too large, or the loss had no pixel to look at"


def train_steps(
    stepper: Stepper,
    batches: Iterator[ImageBatch],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    steps: int,
) -> TrainedSteps:
    """Train a stepper's network in place for so many steps on labelled batches.

    Args:
        stepper: new, on the network's device.
        batches: at least ``steps`` of them, with labels.
        loss: logits float32 [B, C, H, W] and labels int64 [B, H, W] (255: ignored) -> scalar.
        steps: of this training.

    Raises ValueError where batches run out or have no labels, where this training would outlast the run, and
    where the loss stops being finite.
    """
    if stepper.first_step + steps > stepper.total_steps:
        raise ValueError(
            f"{steps} steps after {stepper.first_step} do not fit into a run of {stepper.total_steps} steps."
        )
    place = stepper.model.mean.device
    summed, taken = 0.0, 0
    for batch in stepper.clock.waited(islice(batches, steps)):
        if batch.labels is None:
            raise ValueError("A batch without labels was given to supervised training.")
        images = batch.images.to(place, non_blocking=True)
        labels = batch.labels.to(place, non_blocking=True)
        with stepper.autocast():
            logits = stepper.model(images)
        with stepper.clock.part("forward"):
            value = loss(logits, labels)
        summed += stepper.step(value, images)
        taken += 1
    if taken < steps:
        raise ValueError(f"The batches ended after {taken} of {steps} steps.")
    count = max(steps, 1)
    return TrainedSteps(summed / count, stepper.prox / count, steps, stepper.skipped)


def _anchored(
    model: SegmentationNetwork, anchor: Anchor | None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Pair the parameters that FedProx pulls with where it pulls them."""
    if anchor is None:
        return [], []
    parameters = dict(model.named_parameters())
    moving: list[torch.Tensor] = []
    origin: list[torch.Tensor] = []
    for name, array in anchor.weights.items():
        parameter = parameters.get(name)
        if parameter is None or tuple(parameter.shape) != np.shape(array):
            raise ValueError(
                f"FedProx was given '{name}' {np.shape(array)}, which is no parameter of this network."
            )
        if parameter.requires_grad:
            moving.append(parameter)
            origin.append(torch.empty_like(parameter).copy_(torch.from_numpy(np.asarray(array, np.float32))))
    return moving, origin
