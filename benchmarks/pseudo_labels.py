"""What does it cost to turn a teacher's logits into labels, beside loops over images and classes?

    python benchmarks/pseudo_labels.py [--batch 8] [--height 512] [--width 928] [--classes 19]

"As published" takes the steps of the public implementation of this rule (LADD): the classes from a maximum of
the logits, the softmax of the batch, for each image a copy of its probabilities and their maximum, then for each
class in it a mask over the full map and a topk of all its pixels. "Lean" is that loop without what it does not
need: softmax and maximum of the whole batch are taken once. All get the same logits, at three levels of how sure
a network is and in two layouts: classes of a pixel side by side (channels last), as our network gives them, or
pixels of a class. They take turns in this process after a warm-up. Times are medians from logits to labels; "choice
only" starts from certainties and classes, which every way has to find, and is beside the lean loop. The last row
sums the times of all. The labels are compared first: only pixels whose certainties are equal to the last bits of
float32 may differ.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # so that the script runs without an installation

from common.data.classes import IGNORE
from common.errors import report_user_errors
from common.losses.self_training import kept_pixels, predictions, sure_pixels
from common.seeds import torch_generator
from common.system.device import choose_device

CONFIDENCE, FRACTION = 0.9, 0.66
SHARPNESS = (1.0, 3.0, 10.0)
"""Factors on the logits: an untrained, a trained and an overconfident teacher."""

LAYOUTS = {"by pixel": torch.channels_last, "by class": torch.contiguous_format}
"""What lies side by side in memory."""

COLUMNS = (
    "layout",
    "logits times",
    "sure (%)",
    "kept (%)",
    *("as published (s)", "lean (s)", "here (s)", "as published / here", "lean / here"),
    *("choice only: lean (s)", "here (s)", "lean / here"),
)


def draw_logits(options: argparse.Namespace, sharpness: float) -> torch.Tensor:
    """Return logits [B, C, H, W] as a network gives them: a coarse map made larger, with some detail."""
    generator = torch_generator(0, "logits")
    shape = (options.batch, options.classes, options.height, options.width)
    coarse = torch.randn(*shape[:2], -(-shape[2] // 32), -(-shape[3] // 32), generator=generator)
    smooth = functional.interpolate(3 * coarse, size=shape[2:], mode="bilinear")
    logits = sharpness * (smooth + 0.3 * torch.randn(shape, generator=generator))
    return logits.to(options.device)


def published(logits: torch.Tensor) -> torch.Tensor:
    """Return the labels step by step as the public implementation finds them."""
    classes = logits.max(dim=1).indices
    probabilities = logits.softmax(dim=1)
    kept = [
        looped_image(image.clone().max(dim=0).values, own)
        for image, own in zip(probabilities, classes, strict=True)
    ]
    return classes.masked_fill(~torch.stack(kept), IGNORE)


def looped(logits: torch.Tensor) -> torch.Tensor:
    """Return the labels by the loop alone."""
    certainty, classes = logits.softmax(dim=1).max(dim=1)
    return looped_choice(certainty, classes)


def looped_choice(certainty: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Choose the pixels of all images."""
    kept = [looped_image(sure, own) for sure, own in zip(certainty, classes, strict=True)]
    return classes.masked_fill(~torch.stack(kept), IGNORE)


def looped_image(certainty: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Choose the pixels of one image [H, W], class after class."""
    kept = certainty > CONFIDENCE
    for name in torch.unique(classes):
        mask = classes == name
        candidates = certainty.clone()
        candidates[~mask] = 0
        best = candidates.flatten().topk(int(FRACTION * int(mask.sum()))).indices
        top = torch.zeros_like(mask).flatten()
        top[best] = True
        kept |= mask & top.view_as(mask)
    return kept


def in_turn(pieces: Sequence[Callable[[], object]], repeats: int, device: str) -> list[float]:
    """Return the median seconds of each piece of work; they run in turn, so that all see the same machine."""
    times: list[list[float]] = [[] for _ in pieces]
    for _ in range(repeats + 1):
        for piece, seconds in zip(pieces, times, strict=True):
            started = time.perf_counter()
            piece()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    return [median(seconds[1:]) for seconds in times]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8, help="images (default 8)")
    parser.add_argument("--height", type=int, default=512, help="pixels (default 512)")
    parser.add_argument("--width", type=int, default=928, help="pixels (default 928)")
    parser.add_argument("--classes", type=int, default=19, help="classes (default 19)")
    parser.add_argument("--repeats", type=int, default=5, help="runs that are timed (default 5)")
    parser.add_argument("--device", default="cpu", help="auto, cpu or cuda (default cpu)")
    options = parser.parse_args(arguments)
    if min(options.batch, options.height, options.width, options.repeats) < 1 or options.classes < 2:
        parser.error("--batch, --height, --width and --repeats have to be at least 1, --classes at least 2")
    return options


@dataclass(frozen=True)
class Seconds:
    """What each way took: from logits to labels, and for the choice of pixels alone."""

    published: float
    lean: float
    here: float
    lean_choice: float
    choice: float

    def cells(self) -> list[str]:
        """Return the seconds and their ratios as a table has them."""
        return [
            *(f"{self.published:.3f}", f"{self.lean:.3f}", f"{self.here:.3f}"),
            *(f"{self.published / self.here:.1f}", f"{self.lean / self.here:.1f}"),
            *(f"{self.lean_choice:.3f}", f"{self.choice:.3f}", f"{self.lean_choice / self.choice:.1f}"),
        ]


def measure(logits: torch.Tensor, options: argparse.Namespace) -> tuple[list[str], Seconds]:
    """Check that all ways agree and time them; returns the shares of sure and of kept pixels, and the times."""
    labels = kept_pixels(logits, CONFIDENCE, FRACTION)
    for way in (published, looped):
        differing = float((labels != way(logits)).float().mean())
        if differing > 1e-4:
            raise RuntimeError(f"{differing:.2%} of the labels differ from those of {way.__name__}")
    certainty, classes = predictions(logits)
    times = in_turn(
        (
            lambda: published(logits),
            lambda: looped(logits),
            lambda: kept_pixels(logits, CONFIDENCE, FRACTION),
            lambda: looped_choice(certainty, classes),
            lambda: sure_pixels(certainty, classes, options.classes, CONFIDENCE, FRACTION),
        ),
        options.repeats,
        options.device,
    )
    shares = (certainty > CONFIDENCE, labels != IGNORE)
    return [f"{100 * float(share.float().mean()):.0f}" for share in shares], Seconds(*times)


def total(rows: Sequence[Seconds]) -> Seconds:
    """Return the sums of all rows' times: their ratios are what all of these batches together cost."""
    return Seconds(*(sum(times) for times in zip(*map(astuple, rows), strict=True)))


def line(cells: Sequence[str]) -> str:
    """Return a line of the table."""
    return "| " + " | ".join(cells) + " |"


@report_user_errors
def main() -> None:
    """Measure and print the table."""
    options = parse()
    options.device = str(choose_device(options.device))
    print(line(COLUMNS))
    print("|" + "---|" * len(COLUMNS))
    rows: list[Seconds] = []
    for sharpness in SHARPNESS:
        drawn = draw_logits(options, sharpness)
        for layout, form in LAYOUTS.items():
            shares, seconds = measure(drawn.contiguous(memory_format=form), options)
            rows.append(seconds)
            print(line([layout, f"{sharpness:g}", *shares, *seconds.cells()]), flush=True)
    print(line(["both", "all", "", "", *total(rows).cells()]))
    print(
        f"\nBatch {options.batch}, {options.height} x {options.width}, {options.classes} classes, device "
        f"{options.device}, {torch.get_num_threads()} threads, median of {options.repeats}"
    )


if __name__ == "__main__":
    main()
