"""Does the memory of head aggregation grow with the number of sites?

Prints one table: the streaming mean of the server against stacking all heads, for a ViT-S head. Heads are
made one at a time, as replies arrive; each measurement runs in a process of its own, and its memory is the
rise of the process's peak.

    python benchmarks/head_aggregation.py [--sites 10 100 1000] [--values 201740] [--no-stacking]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from server.aggregation.heads import StreamingMean

VIT_S_HEAD = 201_740


def heads(count: int, values: int) -> Iterator[tuple[str, dict[str, np.ndarray], float]]:
    """Yield name, head and weight of one site after another."""
    rng = np.random.default_rng(0)
    for index in range(count):
        head = {"head": 0.05 * rng.standard_normal(values, dtype=np.float32)}
        yield f"site-{index:05}", head, float(1 + index % 400)


def peak_mib() -> float:
    """Return the highest resident size of this process so far, in MiB (ru_maxrss is in KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1024.0 * (1024.0 if sys.platform == "darwin" else 1)
    )


def measure(how: str, count: int, values: int) -> tuple[float, float, np.ndarray]:
    """Return seconds spent on aggregation alone, MiB, and the first numbers of the mean."""
    before, seconds = peak_mib(), 0.0
    mean, stack, weights = StreamingMean(), [], []
    for site, head, weight in heads(count, values):
        start = time.perf_counter()
        if how == "streaming":
            mean.add(site, head, weight)
        else:
            stack.append(head["head"])
            weights.append(weight)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    if how == "streaming":
        result = mean.result()["head"]
    else:
        shares = np.array(weights, dtype=np.float32) / np.float32(sum(weights))
        result = np.tensordot(shares, np.stack(stack), axes=1)
    seconds += time.perf_counter() - start
    return seconds, peak_mib() - before, result[:1000]


def main() -> None:
    """Measure both ways at every size and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sites", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--values", type=int, default=VIT_S_HEAD, help="fp32 values of one head")
    parser.add_argument("--no-stacking", action="store_true", help="leave out the comparison")
    arguments = parser.parse_args()

    ways = ["streaming"] if arguments.no_stacking else ["streaming", "stacking"]
    lines = [f"Averaging heads of {arguments.values:,} fp32 values: peak memory, and seconds in all", ""]
    lines.append("| sites | " + " | ".join(f"{way}, MiB | {way}, s" for way in ways) + " |")
    lines.append("|---:|" + "---:|" * (2 * len(ways)))
    context = multiprocessing.get_context("spawn")
    for count in arguments.sites:
        cells, results = [], []
        for way in ways:
            print(f"{way}, {count} sites ...", end="\r", file=sys.stderr, flush=True)
            with context.Pool(1) as pool:
                seconds, memory, result = pool.apply(measure, (way, count, arguments.values))
            cells += [f"{memory:.1f}", f"{seconds:.2f}"]
            results.append(result)
        if not np.allclose(results[0], results[-1], rtol=1e-4, atol=1e-6):
            raise SystemExit("error: the two ways disagree")
        lines.append(f"| {count:,} | " + " | ".join(cells) + " |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
