"""What a report says of clusters: how many are used, the ways of their centroids, how correspondences know labels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from common.evaluation.correspondences import CORRESPONDENCES
from common.evaluation.overlay import cluster_colours, hex_colour
from common.figures import TITLE, as_svg, new_figure, styled
from server.report.data import RunRecord
from server.report.render import SERIES_COLOURS

# the rarest kinds of street scenes that are told apart hold twice as much
LEAST_SHARE = 0.001
# more ways than that cover each other
_MOST_WAYS = 64


def collapse(run: RunRecord) -> str:
    """Say in a sentence how many clusters a run ended with where some hold next to nothing; else empty."""
    if not (run.facts.frozen_backbone or run.facts.from_clusters):
        return ""  # outputs that were trained as classes
    shares = next((row.cluster_share for row in reversed(run.rows) if row.cluster_share), None) or []
    used = sum(share >= LEAST_SHARE for share in shares)
    if used == len(shares):
        return ""
    return (
        f"the run collapsed to {used} of {len(shares)} clusters: the others hold less than {LEAST_SHARE:.1%} of the "
        f"{'pixels' if run.is_network else 'patches'}; try another seed, learning rate or shift, or fewer clusters"
    )


def _kept_centroids(run: RunRecord) -> dict[int, NDArray[np.float64]]:
    """Return the unit centroids [K, D] of every round whose checkpoint is kept; what cannot be read is left out."""
    found = {}
    for file in sorted((run.folder / "checkpoints").glob("round-*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as held:
                rows = held.get_tensor("centroids").astype(np.float64)
        except (SafetensorError, OSError):
            continue
        found[int(file.stem.removeprefix("round-"))] = rows / np.maximum(
            np.linalg.norm(rows, axis=1, keepdims=True), 1e-12
        )
    return found


def plane_of(rounds: list[NDArray[np.float64]]) -> tuple[list[NDArray[np.float64]], float]:
    """Return centroids [K, 2] of every round in the plane of the most variance of all, and its share of that.

    The plane is fitted once: places of different rounds can be compared.
    """
    rows = np.concatenate(rounds)
    mean = rows.mean(axis=0)
    _, values, axes = np.linalg.svd(rows - mean, full_matrices=False)
    total = float(np.square(values).sum())
    share = float(np.square(values[:2]).sum()) / total if total else 1.0
    return [(one - mean) @ axes[:2].T for one in rounds], share


def centroid_ways(run: RunRecord) -> dict[str, Any] | None:
    """Return the chart of the centroids' ways over the kept rounds; None where there are fewer than two to compare."""
    kept = {} if run.is_network else _kept_centroids(run)
    shape = next(iter(reversed(kept.values()))).shape if kept else (0, 0)
    kept = {number: rows for number, rows in kept.items() if rows.shape == shape}
    if len(kept) < 2 or shape[0] > _MOST_WAYS:
        return None
    places, share = plane_of(list(kept.values()))
    first, last = min(kept), max(kept)
    note = f"Directions of the centroids from round {first} to {last} (dot), in one plane for all rounds, which holds "
    return {"note": f"{note}{share:.0%} of their variance.", "chart": _draw_ways(np.stack(places))}


@styled
def _draw_ways(places: NDArray[np.float64]) -> str:
    figure = new_figure(640, 460)
    ax = figure.add_subplot()
    ax.set_aspect("equal", adjustable="datalim")
    ax.grid()
    ax.tick_params(length=0, labelbottom=False, labelleft=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    for cluster, color in enumerate(map(hex_colour, cluster_colours(places.shape[1]))):
        way = places[:, cluster]
        ax.plot(way[:, 0], way[:, 1], "-", color=color, lw=1.4, alpha=0.75, gid=f"{TITLE}cluster {cluster}")
        ax.plot(*way[-1], "o", color=color, markersize=6)
    return as_svg(figure, "Ways of the centroids over the rounds, in one plane")


def correspondence_curves(run: RunRecord) -> dict[str, Any] | None:
    """Return the chart of what `common.evaluation.correspondences` measured; None where nothing was."""
    try:
        found = json.loads((run.folder / CORRESPONDENCES).read_text(encoding="utf-8"))
        series = [
            (f"{entry['name']}, average precision {entry['average_precision']:.2f}", SERIES_COLOURS[i], entry)
            for i, entry in enumerate(found["curves"])
        ]
        chance = float(found["chance"])
        note = (
            f"Pairs of patches of {found['images']} images, the most alike first: how many are of one class (up), "
            f"of all that are (across). By chance {chance:.2f}."
        )
        return {
            "note": note,
            "names": [(name, color) for name, color, _ in series],
            "chart": _draw_curves(series, chance),
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError):  # a report does without what is not there
        return None


@styled
def _draw_curves(series: list[tuple[str, str, dict[str, Any]]], chance: float) -> str:
    figure = new_figure(520, 320)
    ax = figure.add_subplot(xlabel="recall", ylabel="precision")
    ax.grid()
    ax.tick_params(length=0)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.axhline(chance, lw=1, ls="--", color="#94a3b8")
    for name, color, entry in series:
        ax.plot(entry["recall"], entry["precision"], color=color, lw=1.8, gid=TITLE + name)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    return as_svg(figure, "Precision and recall of correspondences between patches")
