"""Is a training step the one that the settings describe, and does a broken one say why?"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.data.data_loader import ImageBatch
from common.models.network import SeededDropout, network_to_arrays
from common.models.networks.deeplab import DeepLab
from common.settings.network import Sgd
from common.training import steps as network_training
from common.training.steps import Anchor, Stepper, TrainedSteps, learning_rate
from tests.support.training import train_anew

CLASSES = 3


class Tiny(DeepLab):
    """The same interface and forward pass around two small convolutions."""

    head: Any

    def __init__(self, dropout: float = 0.0) -> None:
        nn.Module.__init__(self)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.backbone = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()
            )
            self.head = nn.Sequential(SeededDropout(dropout), nn.Conv2d(8, CLASSES, 1))
        self.classes, self.output_stride = CLASSES, 2
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5), persistent=False)
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.5), persistent=False)


def batches(count: int, seed: int = 0) -> list[ImageBatch]:
    """Random images whose brighter pixels are another class."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        images = torch.rand(2, 3, 8, 12, generator=generator)
        made.append(ImageBatch(images, (images.mean(1) * CLASSES).long(), [2 * index, 2 * index + 1]))
    return made


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels)


def trained(model: DeepLab, sgd: Sgd, count: int = 4, **options: Any) -> TrainedSteps:
    """Train for so many steps on fresh batches."""
    settings = {"steps": count, "total_steps": count, "seed": 0, **options}
    return train_anew(model, iter(batches(count)), loss_of, sgd, **settings)


def assert_same(first: nn.Module, second: nn.Module, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    state = second.state_dict()
    for name, value in first.state_dict().items():
        assert torch.allclose(value.float(), state[name].float(), rtol=rtol, atol=atol), name


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.0},
        {"momentum": 0.9, "schedule": "poly"},
        {"momentum": 0.8, "weight_decay": 0.01, "schedule": "cosine"},
    ],
)
def test_steps_are_those_of_sgd_written_out(settings: dict[str, Any]) -> None:
    """v = m v + g + wd w; w = w - lr v (torch's form of momentum)."""
    sgd = Sgd(lr=0.05, **settings)
    model, reference = Tiny(), Tiny().train()
    velocity = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    losses = []
    for step, batch in enumerate(batches(4)):
        assert batch.labels is not None
        loss = loss_of(reference(batch.images), batch.labels)
        losses.append(loss.item())
        reference.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for name, p in reference.named_parameters():
                assert p.grad is not None
                gradient = p.grad + sgd.weight_decay * p
                velocity[name] = gradient if step == 0 else sgd.momentum * velocity[name] + gradient
                p.sub_(learning_rate(sgd, step, 4) * velocity[name])
    result = trained(model, sgd)
    assert_same(model, reference, rtol=1e-4, atol=1e-6)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert (result.steps, result.skipped, result.prox) == (4, 0, 0.0)


@pytest.mark.parametrize("algorithm", ["adam", "adamw"])
def test_steps_are_those_of_adam_written_out(algorithm: str) -> None:
    """Kingma and Ba's algorithm 1; weight decay in the gradient, or beside it (Loshchilov and Hutter)."""
    sgd = Sgd.model_validate({"algorithm": algorithm, "lr": 0.01, "momentum": 0.8, "weight_decay": 0.1})
    model, reference = Tiny(), Tiny().train()
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in reference.named_parameters()}
    for step, batch in enumerate(batches(4)):
        assert batch.labels is not None
        reference.zero_grad()
        loss_of(reference(batch.images), batch.labels).backward()  # type: ignore[no-untyped-call]
        rate = learning_rate(sgd, step, 4)
        with torch.no_grad():
            for name, p in reference.named_parameters():
                assert p.grad is not None
                if algorithm == "adamw":
                    p.mul_(1 - rate * 0.1)
                gradient = p.grad + (0.1 * p if algorithm == "adam" else 0)
                first, second = moments[name]
                first.mul_(0.8).add_(0.2 * gradient)
                second.mul_(0.999).add_(0.001 * gradient.square())
                fair = first / (1 - 0.8 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
                p.sub_(rate * fair[0] / (fair[1].sqrt() + 1e-8))
    trained(model, sgd)
    with (
        torch.no_grad()
    ):  # batch norm takes this bias away: its gradient is noise, which Adam makes as large as any
        for network in (model, reference):
            network.backbone[0].bias.zero_()
            network.backbone[1].running_mean.zero_()
    assert_same(model, reference, rtol=1e-3, atol=1e-5)


def test_the_schedule_goes_on_where_earlier_rounds_ended() -> None:
    """Without momentum, two rounds of two steps are one run of four; started anew they would not be."""
    sgd = Sgd(lr=0.1, momentum=0.0, schedule="linear")
    whole, cut, anew = Tiny(), Tiny(), Tiny()
    trained(whole, sgd)
    for first in (0, 2):
        data = iter(batches(4)[first : first + 2])
        train_anew(cut, data, loss_of, sgd, steps=2, first_step=first, total_steps=4, seed=0)
        data = iter(batches(4)[first : first + 2])
        train_anew(anew, data, loss_of, sgd, steps=2, total_steps=2, seed=0)
    assert_same(cut, whole)
    assert not torch.allclose(cut.head[1].weight, anew.head[1].weight)


def test_prox_is_the_gradient_of_its_term() -> None:
    sgd = Sgd(lr=0.05, momentum=0.9)
    model, reference = Tiny(), Tiny().train()
    received = {name: array + 0.1 for name, array in network_to_arrays(model)[0].items()}
    del received["backbone.1.bias"]  # not pulled
    mu, terms = 0.5, []
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    for step, batch in enumerate(batches(3)):
        assert batch.labels is not None
        apart = [p - torch.from_numpy(received[n]) for n, p in reference.named_parameters() if n in received]
        prox = mu / 2 * torch.stack([d.square().sum() for d in apart]).sum()
        terms.append(prox.item())
        optimizer.param_groups[0]["lr"] = learning_rate(sgd, step, 3)
        optimizer.zero_grad()
        (loss_of(reference(batch.images), batch.labels) + prox).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    result = trained(model, sgd, 3, anchor=Anchor(mu, received))
    assert_same(model, reference, rtol=1e-4, atol=1e-6)
    assert result.prox == pytest.approx(np.mean(terms), rel=1e-4)


def test_an_anchor_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"FedProx was given 'head\.9\.weight' \(3,\)"):
        trained(Tiny(), Sgd(), anchor=Anchor(1.0, {"head.9.weight": np.zeros(3)}))
    with pytest.raises(ValueError, match=r"'head\.1\.bias' \(2,\), which is no parameter"):
        trained(Tiny(), Sgd(), anchor=Anchor(1.0, {"head.1.bias": np.zeros(2)}))


@pytest.mark.parametrize(
    ("freeze", "stays"), [("encoder", "backbone."), ("decoder", "head."), ("batchnorm", "backbone.1.")]
)
def test_what_is_frozen_stays_to_the_last_bit(freeze: str, stays: str) -> None:
    """Also under weight decay and FedProx, which would move it without any gradient."""
    model = Tiny()
    before = copy.deepcopy(model.state_dict())
    away = Anchor(1.0, {name: array + 1 for name, array in network_to_arrays(model)[0].items()})
    trained(model, Sgd(weight_decay=0.1), freeze=freeze, anchor=away)
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, before[name]) is name.startswith(stays), name


def test_a_gradient_is_shortened_to_the_norm_asked_for() -> None:
    model, sgd = Tiny(), Sgd(lr=0.5, momentum=0.0, schedule="constant")
    before = torch.cat([p.detach().clone().flatten() for p in model.parameters()])
    trained(model, sgd, 1, clip_norm=0.01)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_dropout_follows_the_seed() -> None:
    models = [Tiny(dropout=0.5) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        trained(model, Sgd(), seed=seed)
    assert_same(models[0], models[1], rtol=0, atol=0)
    assert not torch.equal(models[0].head[1].weight, models[2].head[1].weight)


# --- faults ---------------------------------------------------------------------------------------------


def spoiled(batch: ImageBatch) -> Iterator[ImageBatch]:
    """A good batch, then one whose images hold a NaN."""
    yield batch
    yield ImageBatch(
        batch.images.clone().index_fill_(3, torch.tensor([0]), float("nan")), batch.labels, batch.indices
    )


def test_broken_images_are_named_with_the_step() -> None:
    with pytest.raises(ValueError, match=r"Step 2 .*step 12 of the run.*loss is nan; the images hold NaN"):
        train_anew(
            Tiny(), spoiled(batches(1)[0]), loss_of, Sgd(), steps=2, first_step=10, total_steps=20, seed=0
        )


def test_weights_that_ran_away_are_named() -> None:
    model = Tiny()
    with torch.no_grad():
        model.head[1].weight.fill_(float("inf"))
    with pytest.raises(
        ValueError, match=r"Step 1 .*weights are not finite either, so sgd\.lr = 3 is probably"
    ):
        trained(model, Sgd(lr=3.0))


def test_a_loss_without_pixels_is_named_and_moves_nothing() -> None:
    model = Tiny()
    before = copy.deepcopy(dict(model.named_parameters()))
    nothing = batches(1)[0]
    assert nothing.labels is not None
    empty = ImageBatch(nothing.images, torch.full_like(nothing.labels, 255), [0, 1])
    with pytest.raises(ValueError, match="no pixel to look at"):
        train_anew(
            model,
            iter([empty]),
            lambda logits, labels: F.cross_entropy(logits, labels, ignore_index=255),
            Sgd(),
            steps=1,
            total_steps=1,
            seed=0,
        )
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_batches_have_to_last_and_to_be_labelled() -> None:
    with pytest.raises(ValueError, match="ended after 2 of 3 steps"):
        train_anew(Tiny(), iter(batches(2)), loss_of, Sgd(), steps=3, total_steps=3, seed=0)
    unlabelled = ImageBatch(batches(1)[0].images, None, [0, 1])
    with pytest.raises(ValueError, match="without labels"):
        train_anew(Tiny(), iter([unlabelled]), loss_of, Sgd(), steps=1, total_steps=1, seed=0)
    with pytest.raises(ValueError, match="3 steps after 8 do not fit into a run of 10"):
        trained(Tiny(), Sgd(), 3, first_step=8, total_steps=10)


# --- mixed precision ------------------------------------------------------------------------------------


def test_only_cuda_computes_in_float16() -> None:
    assert network_training.uses_float16(Sgd(), "cuda") and not network_training.uses_float16(Sgd(), "cpu")
    assert not network_training.uses_float16(Sgd(mixed_precision=False), "cuda")
    assert not Stepper(Tiny(), Sgd(), first_step=0, total_steps=1, seed=0).mixed


@pytest.fixture
def half_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the code path of CUDA where there is none: slow, but the same scaling and skipping."""
    monkeypatch.setattr(network_training, "uses_float16", lambda _sgd, _device: True)


@pytest.mark.usefixtures("half_on_cpu")
def test_scaled_gradients_give_the_steps_of_float32() -> None:
    sgd = Sgd(lr=0.05)
    mixed, plain = Tiny(), Tiny()
    received = {name: array + 0.1 for name, array in network_to_arrays(plain)[0].items()}
    seen: list[torch.dtype] = []
    mixed.head[1].register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    result = trained(mixed, sgd, anchor=Anchor(0.5, received), clip_norm=0.5)
    assert seen == [torch.float16] * 4 and result.skipped == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_training, "uses_float16", lambda _sgd, _device: False)
        expected = trained(plain, sgd, anchor=Anchor(0.5, received), clip_norm=0.5)
    assert_same(mixed, plain, rtol=1e-2, atol=1e-3)
    assert result.prox == pytest.approx(expected.prox, rel=1e-2)


@pytest.mark.usefixtures("half_on_cpu")
def test_a_step_that_overflows_is_left_out_and_counted() -> None:
    model = Tiny()
    stepper = Stepper(model, Sgd(weight_decay=0.1), first_step=0, total_steps=2, seed=0)
    batch = batches(1)[0]
    assert batch.labels is not None
    moved = []
    for factor in (1e6, 1e-2):
        before = model.head[1].weight.detach().clone()
        with stepper.autocast():
            logits = model(batch.images)
        stepper.step(loss_of(logits, batch.labels) * factor)
        moved.append(not torch.equal(model.head[1].weight, before))
    assert moved == [False, True]
    assert (stepper.taken, stepper.skipped) == (2, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains_in_float16_to_about_the_same_weights() -> None:
    sgd = Sgd(lr=0.05)
    on_gpu, on_cpu = Tiny().cuda(), Tiny()
    result = trained(on_gpu, sgd)
    expected = trained(on_cpu, sgd)
    assert result.skipped == 0 and result.loss == pytest.approx(expected.loss, rel=1e-2)
    assert_same(on_gpu.cpu(), on_cpu, rtol=1e-2, atol=1e-3)
