"""How does a command read its words, and show how far it is?"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from common.errors import UserError

Progress = Callable[[int, int], None]


class CommandParser(argparse.ArgumentParser):
    """Reports what argparse finds as any other bad input: one sentence, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` with argparse's message as a sentence."""
        sentence = message[:1].upper() + message[1:]
        raise UserError(f"{sentence}; see `{self.prog} --help`.")


def progress_line(what: str) -> Progress | None:
    """Return a line that counts on a terminal, with the time left, or None where nobody watches."""
    if not sys.stderr.isatty():
        return None
    start = time.monotonic()

    def show(done: int, total: int) -> None:
        left = (time.monotonic() - start) / max(done, 1) * (total - done)
        end = "\n" if done == total else ""
        print(f"\r{what} {done}/{total}, {left:.0f} s left  ", end=end, file=sys.stderr, flush=True)

    return show
