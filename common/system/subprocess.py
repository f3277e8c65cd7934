"""Memory-hungry work in a process of its own, whose memory returns to the system with it.

A backbone with its libraries takes some 300 MB, once, while features are cached. Done in a process of its
own, the server stays small for the hours that follow.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import ParamSpec, TypeVar

from common.errors import UserError

_P = ParamSpec("_P")
_R = TypeVar("_R")


def run_in_subprocess(function: Callable[_P, _R], *arguments: _P.args, **options: _P.kwargs) -> _R:
    """Call a module-level function in a fresh process and return its result; its errors are raised here.

    Arguments and result pass between two processes of one machine and have to be plain data.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments, **options).result()
        except BrokenProcessPool:
            raise UserError(
                "The process that runs the backbone was killed; free some memory, or make model.height and "
                "model.width smaller."
            ) from None
