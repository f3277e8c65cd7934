"""Optimizer state between rounds: Adam's moments as named arrays on the site's disk."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch


def moments_to_numpy(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, np.ndarray]:
    """Return Adam's state as named arrays: ``prefix/parameter number/moment``."""
    entries = optimizer.state_dict()["state"]
    return {
        f"{prefix}/{number}/{name}": value.cpu().numpy().copy()
        for number, moments in entries.items()
        for name, value in moments.items()
    }


def load_moments(optimizer: torch.optim.Optimizer, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
    """Load what `moments_to_numpy` returned; names of other prefixes are ignored, none at all is a fresh
    start.

    Raises ValueError where a moment has not the shape of its parameter.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for key, array in arrays.items():
        head, _, rest = key.partition("/")
        if head != prefix:
            continue
        number, _, name = rest.partition("/")
        index = int(number)
        if index >= len(parameters) or (name != "step" and array.shape != tuple(parameters[index].shape)):
            raise ValueError(
                f"The kept optimizer state {key} {array.shape} does not fit; delete this site's state."
            )
        entries.setdefault(index, {})[name] = torch.from_numpy(np.array(array))
    if entries:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
