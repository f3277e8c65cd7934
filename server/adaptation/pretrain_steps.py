"""Optimizer steps of a pretraining that can be stopped after any of them and go on elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from common.data.data_loader import ImageBatch
from common.models.network import SeededDropout
from common.seeds import derive
from common.training.steps import Stepper, TrainedSteps
from server.adaptation.pretrain_snapshot import Snapshot

# At most so much work, and a step, is lost where a pretraining is stopped.
KEEP_SECONDS = 600.0

_MODEL, _OPTIMIZER, _DROPOUT = "network", "optimizer", "dropout"


class ResumableStepper(Stepper):
    """A `Stepper` that can be put away after a step, and taken up again by another process."""

    def snapshot(self, loss: float) -> Snapshot:
        """Copy everything that the next step depends on; ``loss`` is the sum of the losses so far."""
        arrays = {f"{_MODEL}/{key}": _copied(value) for key, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                arrays[f"{_OPTIMIZER}/{name}/{key}"] = _copied(value)
        for name, generator in self._generators().items():
            # dropout draws from generators of its own: without them the next mask is another
            arrays[f"{_DROPOUT}/{name}"] = _copied(generator.get_state())
        scaler = self._scaler.state_dict()
        return Snapshot(self.taken, loss, self.skipped, self._device, scaler, arrays)

    def resume(self, snapshot: Snapshot, seed: int) -> None:
        """Be where the snapshot was taken: the next step is the one that followed it, bit for bit.

        On another kind of device no generator goes on: dropout then draws anew, from ``seed`` and the step. Raises
        ValueError where the arrays are not those of this network and optimiser.
        """
        parameters, generators = dict(self.model.named_parameters()), self._generators()
        network: dict[str, torch.Tensor] = {}
        try:
            for name, array in snapshot.arrays.items():
                kind, owner, *key = name.split("/")
                if kind == _MODEL:
                    network[owner] = torch.from_numpy(array)
                elif kind == _OPTIMIZER:
                    parameter = parameters[owner]
                    self.optimizer.state[parameter][key[0]] = _placed(torch.from_numpy(array), parameter)
                elif snapshot.device == self._device:
                    generators[owner].set_state(torch.from_numpy(array))
            self.model.load_state_dict(network)
        except (KeyError, IndexError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"the arrays are not those of this network and optimiser ({reason})") from None
        if snapshot.device != self._device:
            self.model.seed_dropout(derive(seed, "dropout", snapshot.step))
        if self.mixed and snapshot.scaler:  # empty where the steps so far were taken without
            self._scaler.load_state_dict(snapshot.scaler)
            # else the next step would take the fallen scale for an overflow
            self._scale = self._scaler.get_scale()
        self.taken, self.skipped = snapshot.step, snapshot.skipped

    def _generators(self) -> dict[str, torch.Generator]:
        return {
            name: module.generator
            for name, module in self.model.named_modules()
            if isinstance(module, SeededDropout) and module.generator is not None
        }


def take_steps(
    stepper: ResumableStepper,
    batches: Iterator[ImageBatch],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    summed: float = 0.0,
    keep: Callable[[Snapshot], None],
    progress: Callable[[int, int], None] | None = None,
) -> TrainedSteps:
    """Take a step a batch until the last of the run, and now and then hand a snapshot to ``keep``.

    Args:
        stepper: may have taken some of the steps before.
        batches: those of the steps to come, with labels.
        loss: logits float32 [B, C, H, W] and labels int64 [B, H, W] (255: ignored) -> scalar.
        summed: losses of the steps before, summed; the mean that is returned is over all.
        keep: called when `KEEP_SECONDS` have gone by since the last time.
        progress: called with (steps done here, steps to do here).

    Raises ValueError where the loss stops being finite.
    """
    place = stepper.model.mean.device
    before = stepper.taken
    kept = time.monotonic()
    for batch in batches:
        assert batch.labels is not None
        images = batch.images.to(place, non_blocking=True)
        labels = batch.labels.to(place, non_blocking=True)
        with stepper.autocast():
            logits = stepper.model(images)
        summed += stepper.step(loss(logits, labels), images)
        if progress is not None:
            progress(stepper.taken - before, stepper.total_steps - before)
        if time.monotonic() - kept >= KEEP_SECONDS:
            keep(stepper.snapshot(summed))
            kept = time.monotonic()
    return TrainedSteps(summed / max(stepper.taken, 1), 0.0, stepper.taken, stepper.skipped)


def _copied(tensor: torch.Tensor) -> np.ndarray:
    """Copy to the CPU, values in the order of the shape; a scalar stays one."""
    return np.array(tensor.detach().cpu().numpy(), order="C")


def _placed(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Bring what an optimiser remembers of a parameter to its device, laid out in memory as it is.

    Another layout would take slower kernels, whose last bits may differ. A count of steps stays on the CPU.
    """
    if value.shape != parameter.shape:
        return value.clone()
    return torch.empty_like(parameter, requires_grad=False).copy_(value)
