"""Which errors can a user cause, and how does a command report them?"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

EXIT_BAD_INPUT = 2


class UserError(ValueError):
    """Something a user gave cannot be used.

    The message is one sentence: what was given, what was expected, what to do.
    Commands print it without a traceback and exit with code 2.
    """


def report_user_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a `UserError` raised by a command into one line on stderr and exit code 2."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
            raise SystemExit(EXIT_BAD_INPUT) from None
        except BrokenPipeError:  # the reader of our output has seen enough, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None

    return wrapper
