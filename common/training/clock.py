"""Clock of a local training: where its time goes, as metrics of a round."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

# How the metrics of a round that are times begin.
SECONDS = "seconds-"

_Batch = TypeVar("_Batch")


class Clock:
    """Seconds that a training spent on its parts: waiting for data, the forward pass, and the backward pass.

    A GPU computes while Python goes on: there, what is left of both passes shows where it is waited for, as backward.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("data", "forward", "backward"), 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time within the block to a part."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began

    def waited(self, batches: Iterable[_Batch]) -> Iterator[_Batch]:
        """Yield the batches; the time until each comes is that of the data."""
        reader = iter(batches)
        while True:
            with self.part("data"):
                batch = next(reader, None)
            if batch is None:
                return
            yield batch

    def metrics(self) -> dict[str, float]:
        """Return the parts as metrics of a round."""
        return {f"{SECONDS}{name}": value for name, value in self.seconds.items()}
