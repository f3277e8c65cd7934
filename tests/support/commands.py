"""What a command line understands, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.system.cli import CommandLine


def understood(line: CommandLine, words: Sequence[str]) -> dict[str, Any]:
    """Return the values of a command's options and arguments; raises click's `UsageError` for bad words."""
    name, *rest = words
    return line.group().commands[name].make_context(name, rest).params
