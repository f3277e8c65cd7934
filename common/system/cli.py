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


def positive(text: str) -> int:
    """Read a whole number from 1 up."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def cluster_word(text: str) -> int | str:
    """Read ``auto``, ``global`` or the number of a style cluster."""
    if text not in ("auto", "global") and not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, global or the number of a style cluster")
    return int(text) if text.isdigit() else text


def image_size(text: str) -> tuple[int, int]:
    """Read ``512x928``: height and width in pixels, from 32 up."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and min(int(height), int(width)) >= 32):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size from 32x32 up, as HEIGHTxWIDTH")
    return int(height), int(width)


def add_refinements(command: argparse.ArgumentParser) -> None:
    """Add what may be done to a prediction before it is scored or written."""
    command.add_argument("--crf", action="store_true", help="refine with a dense CRF")
    command.add_argument("--flip", action="store_true", help="average with the mirrored image")


def add_site_option(command: argparse.ArgumentParser, every: bool = False) -> None:
    """Add the choice of a site's own model; ``every`` knows the word for all of them."""
    command.add_argument(
        "--site",
        metavar="all|NAME" if every else "NAME",
        help="of a run whose sites do not share all (centroids.share): this site's own model"
        + (", or each by itself, and their mean" if every else ""),
    )


def add_cluster_option(command: argparse.ArgumentParser, default: str) -> None:
    """Add the choice between the networks of a run with style clusters."""
    command.add_argument(
        "--cluster",
        type=cluster_word,
        default=default,
        metavar="auto|global|N",
        help="of a run with style clusters: per image that of the nearest style (auto), the shared network, or "
        f"cluster N's (default: {default})",
    )
