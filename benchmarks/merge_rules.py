"""How long do the centroid merge rules take, and how much memory, from 18 to 10,000 sites?

Prints one table. Every measurement runs in a process of its own, so that peak memory is that of one rule:
the rise over what the process held once the sites' replies had arrived. Sites are noisy copies of common
centroids, some rows dead.

    python benchmarks/merge_rules.py [--sites 18 1000 10000] [--clusters 27] [--dim 70] [--rules RULE ...]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.settings.unsupervised import Centroids
from server.centroids.base import CENTROID_RULES, SiteRows, merge_centroids

PUBLISHED: dict[str, object] = {"spherical": False, "weighted": False, "keep_index": False}

RULES: dict[str, dict[str, object]] = {
    "mean": {"merge": "mean"},
    "fedcc-kmeans, as published": {"merge": "fedcc-kmeans", **PUBLISHED},
    "fedcc-kmeans, spherical, counts": {"merge": "fedcc-kmeans"},
    "fedcc-maximin, as published": {"merge": "fedcc-maximin", **PUBLISHED},
    "fedcc-maximin, spherical, counts": {"merge": "fedcc-maximin"},
    "matched": {"merge": "matched"},
    "matched-median": {"merge": "matched-median"},
    "matched-geometric": {"merge": "matched-geometric"},
    "lloyd (sums)": {"merge": "lloyd"},
}


def make_sites(count: int, clusters: int, dim: int) -> tuple[np.ndarray, dict[str, SiteRows]]:
    """Return current centroids and the sites' replies."""
    rng = np.random.default_rng(0)
    current = rng.standard_normal((clusters, dim)).astype(np.float32)
    sites = {}
    for index in range(count):
        rows = current + rng.standard_normal((clusters, dim), dtype=np.float32)
        sites[f"site-{index:05}"] = SiteRows(rows, np.maximum(rng.integers(-200, 5000, clusters), 0))
    return current, sites


def peak_mib() -> float:
    """Return the highest resident size of this process so far, in MiB (ru_maxrss is in KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1024.0 * (1024.0 if sys.platform == "darwin" else 1)
    )


def measure(rule: str, count: int, clusters: int, dim: int) -> tuple[float, float]:
    """Return seconds and MiB of one merge."""
    current, sites = make_sites(count, clusters, dim)
    settings = Centroids.model_validate(RULES[rule])
    if CENTROID_RULES.facts(settings.merge).takes == "sums":
        # sums of unit codes are shorter than their counts; float32 only so that set-up stays below the merge
        sites = {
            n: SiteRows(s.rows * (s.counts[:, None] / np.float32(100)), s.counts) for n, s in sites.items()
        }

    def merge(first: int) -> object:
        return merge_centroids(current, dict(islice(sites.items(), first)), settings)

    merge(2)  # imports and first-call costs are no part of the rule
    before, start = peak_mib(), time.perf_counter()
    merge(count)
    return time.perf_counter() - start, peak_mib() - before


def main() -> None:
    """Measure every rule at every size and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sites", type=int, nargs="+", default=[18, 1000, 10000])
    parser.add_argument("--clusters", type=int, default=27)
    parser.add_argument("--dim", type=int, default=70)
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES), metavar="RULE")
    arguments = parser.parse_args()
    clusters, dim = arguments.clusters, arguments.dim

    lines = [
        f"Merging centroids of {clusters} x {dim} (fp32): seconds and peak memory above the replies, MiB",
        "",
    ]
    lines.append("| rule | " + " | ".join(f"{count:,} sites" for count in arguments.sites) + " |")
    lines.append("|---|" + "---:|" * len(arguments.sites))
    context = multiprocessing.get_context("spawn")
    for rule in arguments.rules:
        cells = []
        for count in arguments.sites:
            print(f"{rule}, {count} sites ...", end="\r", file=sys.stderr, flush=True)
            with context.Pool(1) as pool:
                seconds, memory = pool.apply(measure, (rule, count, clusters, dim))
            cells.append(f"{seconds:.3f} s, {memory:.0f}")
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
