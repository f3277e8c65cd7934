"""The torch device of a process: its choice, its share of memory, and bitwise reproducibility."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from common.errors import UserError

WORKSPACES = (":4096:8", ":16:8")
"""Values of CUBLAS_WORKSPACE_CONFIG with which cuBLAS gives the same bits every time (NVIDIA's cuBLAS manual)."""
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


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


def limit_memory(device: torch.device, share: float) -> None:
    """Let this process allocate at most ``share`` (above 0, at most 1) of a GPU's memory; a CPU is left alone.

    What CUDA itself needs, some hundred megabytes a process, comes on top. Starts CUDA where a limit is set.
    """
    if device.type == "cuda" and share < 1:
        torch.cuda.set_per_process_memory_fraction(share, device.index)


@contextmanager
def room_on_device(advice: str) -> Iterator[None]:
    """Turn a GPU that runs out of memory within into a `UserError`; ``advice`` says what to do: "lower x"."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
    else:
        return
    # out of the handler: until here the exception keeps what filled the memory alive
    torch.cuda.empty_cache()
    raise UserError(f"The GPU has no room for this work ({reason}); {advice}.")


def set_deterministic(wanted: bool) -> None:
    """Have CUDA give the same bits in every run, or give up on that; a CPU does anyway.

    Operations that exist in no such form still run, and torch names each in a warning. To be called before the
    process first uses CUDA: cuBLAS reads its setting once. Raises `UserError` where that is too late.
    """
    if not torch.cuda.is_available():
        return
    if wanted and os.environ.get(_WORKSPACE) not in WORKSPACES:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            raise UserError(
                f"deterministic is true but this process has used CUDA without it; start it with "
                f"{_WORKSPACE}={WORKSPACES[0]} in its environment."
            )
        os.environ[_WORKSPACE] = WORKSPACES[0]
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = False
