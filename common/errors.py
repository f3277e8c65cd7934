"""Errors that a user can cause, and their report: one sentence and exit code 2."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from pydantic import ValidationError

P = ParamSpec("P")
R = TypeVar("R")

EXIT_STOPPED = 130  # as shells say it of Ctrl-C
EXIT_BAD_INPUT = 2  # what command lines return for bad usage
EXIT_UNCOUNTED = 3  # there is a model, but the run's last rounds did not count
# Characters of a bad value that a sentence quotes; a whole file would bury the key and the remedy.
_LONGEST_VALUE = 200


class UserError(ValueError):
    """Something a user gave cannot be used.

    The message is one sentence: what was given, what was expected, what to do.
    Commands print it without a traceback and exit with ``exit_code``.
    """

    exit_code = EXIT_BAD_INPUT


class UncountedRounds(UserError):
    """A run is over, but its last rounds changed no model."""

    exit_code = EXIT_UNCOUNTED


def user_error(
    error: ValidationError,
    subject: str,
    remedy: str = "",
    *,
    key: Callable[[str], str] = str,
    whole: str = "",
) -> UserError:
    """Turn the first fault that pydantic found into our sentence: key, value, what was expected, what to do.

    Args:
        error: of any pydantic model that was read.
        subject: what comes before the key: 'Setting', 'Site setting', 'site-0.jsonl line 3:'.
        remedy: what to do, without a full stop.
        key: how a part of the key is spelled for users.
        whole: replaces ``subject`` where the fault is of no single key.
    """
    first = error.errors(include_url=False)[0]  # one sentence is about one fault
    path = ".".join(key(str(part)) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ").rstrip(".")
    if first["type"] == "json_invalid":
        text = f"{subject.rstrip(':')} is no JSON ({first['ctx']['error']})"
    elif not path:
        text = f"{whole or subject.rstrip(':')}: {what}"
    elif first["type"] in ("missing", "extra_forbidden", "unexpected_keyword_argument"):
        text = f"{subject} '{path}' is {'missing' if first['type'] == 'missing' else 'an unknown key'}"
    else:
        given = repr(first["input"])
        given = given if len(given) <= _LONGEST_VALUE else f"{given[:_LONGEST_VALUE]}..."
        text = f"{subject} '{path}' is {given}: {what}"
    return UserError(f"{text}; {remedy}." if remedy else f"{text}.")


def report_user_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a `UserError` raised by a command into one line on stderr and its exit code."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            raise SystemExit(EXIT_STOPPED) from None
        except BrokenPipeError:  # the reader of our output has seen enough, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None

    return wrapper
