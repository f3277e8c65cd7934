"""The torch device of a process: its choice, its memory, bitwise reproducibility, and work in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

from common.errors import UserError
from common.system.stopping import end_with_parent

# values of CUBLAS_WORKSPACE_CONFIG with which cuBLAS gives the same bits every time (NVIDIA's cuBLAS manual)
WORKSPACES = (":4096:8", ":16:8")
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


_P = ParamSpec("_P")
_R = TypeVar("_R")


def run_in_subprocess(function: Callable[_P, _R], *arguments: _P.args, **options: _P.kwargs) -> _R:
    """Call a module-level function in a fresh process and return its result; its errors are raised here.

    For work that is hungry for memory: a backbone with its libraries takes some 300 MB, once, while features are
    cached. They return to the system with the process, and the server stays small for the hours that follow.

    Arguments and result pass between two processes of one machine and have to be plain data.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=end_with_parent, initargs=(os.getpid(),)) as pool:
        try:
            return pool.submit(function, *arguments, **options).result()
        except BrokenProcessPool:
            raise UserError(
                "The process that runs the backbone was killed; free some memory, or make model.height and "
                "model.width smaller."
            ) from None
        except (KeyboardInterrupt, SystemExit):  # else leaving the block would wait until the work is done
            for child in multiprocessing.active_children():
                child.kill()
            raise
