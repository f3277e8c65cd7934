"""Which device does the work run on?"""

from __future__ import annotations

import torch

from common.errors import UserError


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device asked for; ``None`` and ``"auto"`` mean CUDA where there is any, else the CPU.

    Raises `UserError` for a name that torch does not know and for a CUDA device that is not there.
    """
    if device is None or device == "auto" or device == "":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"Device {device!r} is unknown; give 'auto', 'cpu', 'cuda' or 'cuda:0'.") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"Device '{chosen}' was asked for but torch sees {torch.cuda.device_count()} CUDA devices; "
            "give 'auto' or 'cpu', or install a torch build that fits the driver."
        )
    return chosen
