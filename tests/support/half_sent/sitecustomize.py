"""A SuperNode that dies while its answer is half sent: its first part is up, the next one never comes.

On the path of a process, once the file ``TEST_HALF_SENT`` exists; nothing happens before.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

_file = os.environ.get("TEST_HALF_SENT", "")


def install() -> None:
    """Let Flower's SuperNode send by way of us."""
    from flwr.supernode import start_client_internal as supernode

    def push(contents: Iterable[tuple[str, bytes]], push_object_fn: Callable[[str, bytes], None]) -> None:
        for number, (identity, content) in enumerate(contents):
            if number and Path(_file).exists():
                os.kill(os.getpid(), signal.SIGKILL)
            push_object_fn(identity, content)

    supernode.push_object_contents_from_iterable = push


if _file:
    install()
