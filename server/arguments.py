"""How are the words of a command read?"""

from __future__ import annotations

import argparse


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
