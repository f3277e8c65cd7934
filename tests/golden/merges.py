"""Computes the golden figures of every merge rule in one step, on arrays drawn once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from common.settings.federation import Aggregation
from common.settings.unsupervised import Centroids
from server.aggregation.heads import HEAD_RULES, aggregate
from server.aggregation.server_optimizers import OPTIMIZERS, server_step
from server.centroids.base import CENTROID_RULES, SiteRows, merge_centroids
from tests.golden.figures import Golden, Tolerance, hash_of

TOLERANCE = Tolerance(relative=1e-4, absolute=1e-5)
"""Arrays travel as float32, of entries around 1: differences of some are good to 1e-7, sums of them to 1e-6."""

CLUSTERS, DIM = 5, 4
SITES = tuple(f"site-{i}" for i in range(5))
WEIGHTS = {name: float(3 + 2 * i) for i, name in enumerate(SITES)}


def drawn_centroids() -> tuple[np.ndarray, dict[str, SiteRows]]:
    """Return current centroids and those of five sites, which number them in orders of their own.

    One cluster is used by no site, and one site, the last, by its numbers claims far more patches than the others.
    """
    rng = np.random.default_rng(0)
    current = rng.standard_normal((CLUSTERS, DIM)).astype(np.float32)
    sites = {}
    for index, name in enumerate(SITES):
        moved = current + 0.3 * rng.standard_normal((CLUSTERS, DIM))
        order = np.roll(np.arange(CLUSTERS - 1), index % 2)  # the last row is that of the unused cluster
        counts = rng.integers(20, 200, CLUSTERS) * (10 if index == len(SITES) - 1 else 1)
        rows, counts = moved.copy(), counts.astype(np.int64)
        rows[: CLUSTERS - 1], counts[CLUSTERS - 1] = moved[order], 0
        sites[name] = SiteRows(rows.astype(np.float32), counts)
    return current, sites


def variants(rule: str) -> dict[str, dict[str, Any]]:
    """Return the settings under which a centroid rule is looked at, by name."""
    if rule.startswith("fedcc"):
        switches = ("spherical", "weighted", "keep_index")
        alone: dict[str, dict[str, Any]] = {f"no-{s.replace('_', '-')}": {s: False} for s in switches}
        return {"as-is": {}, **alone, "published": dict.fromkeys(switches, False)}
    return {"as-is": {}}


def centroid_figures() -> dict[str, Any]:
    """Return the merged centroids [K, D], their displacement, and the dead clusters of every rule."""
    current, sites = drawn_centroids()
    found: dict[str, Any] = {}
    for rule in CENTROID_RULES.names():
        if rule == "lloyd":
            found[rule] = lloyd_figures(current, sites)
            continue
        for name, given in variants(rule).items():
            settings = Centroids(merge=rule, **given)  # type: ignore[arg-type]
            merged = merge_centroids(current, sites, settings, WEIGHTS)
            found.setdefault(rule, {})[name] = {
                "centroids": merged.centroids,
                "displacement": merged.displacement,
                "dead": list(merged.dead),
            }
    return found


def lloyd_figures(current: np.ndarray, sites: dict[str, SiteRows]) -> dict[str, Any]:
    """Return two passes of k-means from sums, by what happens to empty clusters, and with momentum."""
    sums = {}
    for name, site in sites.items():
        units = site.rows / np.linalg.norm(site.rows, axis=1, keepdims=True)
        counts = site.counts.astype(np.float64)
        sums[name] = SiteRows((0.8 * units * counts[:, None]).astype(np.float32), counts)
    found = {}
    for name, given in {
        "keep": {"empty": "keep"},
        "split": {"empty": "split"},
        "momentum": {"empty": "split", "momentum": 0.5},
    }.items():
        settings = Centroids(merge="lloyd", **given)  # type: ignore[arg-type]
        first = merge_centroids(current, sums, settings)
        one_site = {SITES[0]: sums[SITES[0]]}
        second = merge_centroids(first.centroids, one_site, settings, memory=first.state)
        found[name] = {
            f"pass-{number}": {
                "centroids": merged.centroids,
                "displacement": merged.displacement,
                "dead": list(merged.dead),
                "reseeded": list(merged.reseeded),
            }
            for number, merged in enumerate((first, second), start=1)
        }
    return found


def drawn_heads() -> dict[str, dict[str, np.ndarray]]:
    """Return the heads of seven sites: enough for Krum against two hostile ones, of which the last is one."""
    rng = np.random.default_rng(1)
    centre = rng.standard_normal((3, 4))
    heads = {}
    for index in range(7):
        weight = centre + 0.2 * rng.standard_normal(centre.shape) + (5.0 if index == 6 else 0.0)
        heads[f"site-{index}"] = {
            "linear.weight": weight.astype(np.float32),
            "linear.bias": rng.standard_normal(3).astype(np.float32),
            "steps": np.array(10 + index, dtype=np.int64),
        }
    return heads


def head_figures() -> dict[str, Any]:
    """Return the merged head of every rule, and the sites that entered it."""
    heads = drawn_heads()
    weights = {name: float(3 + 2 * i) for i, name in enumerate(heads)}
    found: dict[str, Any] = {}
    for rule in HEAD_RULES.names():
        given = {"malicious": 2, "keep": 3} if "krum" in rule else {}
        merged = aggregate(heads, weights, Aggregation(rule=rule, **given))  # type: ignore[arg-type]
        numbers = [int(name.removeprefix("site-")) for name in merged.sites]
        found[rule] = {"head": merged.arrays, "sites": numbers}
    return found


def optimizer_figures() -> dict[str, Any]:
    """Return the head after two steps of every server optimizer."""
    heads = drawn_heads()
    start = {key: value for key, value in heads["site-0"].items() if key != "steps"}
    found: dict[str, Any] = {}
    for name in OPTIMIZERS.names():
        lr = 1.0 if name in ("none", "momentum") else 0.1
        settings = Aggregation(optimizer=name, lr=lr, tau=0.01)  # type: ignore[arg-type]
        head, state = dict(start), {}
        for site in ("site-1", "site-2"):
            average = {key: heads[site][key] for key in start}
            head, state = server_step(head, average, state, settings)
        found[name] = head
    return found


def golden_merges() -> list[Golden]:
    """Return what the files on centroids, heads and server optimizers pin."""
    every = {
        "centroid-rules": centroid_figures(),
        "head-rules": head_figures(),
        "server-optimizers": optimizer_figures(),
    }
    golden = [Golden(name, figures, TOLERANCE) for name, figures in every.items()]
    return [replace(one, hashes={"figures": hash_of(one.figures)}) for one in golden]
