"""The report of one run: what ``templates/run.html.md`` shows, and the contact sheets of its rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.data.classes import ClassTable
from common.evaluation.overlay import (
    Bytes,
    Legend,
    cluster_colours,
    hex_colour,
    legend_entries,
    make_legend,
    overlay,
    present_ids,
    truth_legend,
)
from common.evaluation.score import RoundRecord
from common.figures import image_grid
from common.system.atomic import atomic_path, atomic_write_text
from server.report.clusters import centroid_ways, collapse, correspondence_curves
from server.report.data import RunRecord, TestSet, confusion_shares, read_run, style_clusters, style_sheets
from server.report.render import (
    MISSING,
    SERIES_COLOURS,
    Series,
    bar_chart,
    confusion_chart,
    line_chart,
    mean_and_spread,
    percent,
    render_page,
    short,
)
from server.run_dir import FIRST_STAGE


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run directory and return its path.

    The page refers to ``pictures/`` beside it and to nothing else. Raises `UserError` where the folder is
    no run directory or holds no round yet.
    """
    run = read_run(run_dir)
    text = render_page(
        "run",
        run=run,
        scored_on=_scored_on(run),
        sets=_sets(run) if run.is_network and run.sets else None,
        curves=_curves(run),
        classes=_classes(run),
        confusion=_confusion(run),
        coverage=_coverage(run),
        collapse=collapse(run),
        ways=centroid_ways(run),
        correspondences=correspondence_curves(run),
        clusters=style_clusters(run.folder) if run.is_network else None,
        styles=style_sheets(run.folder) if run.is_network else [],
        stages=_stages(run) if run.facts.from_clusters else None,
    )
    path = run.folder / "report.html"
    atomic_write_text(path, text)
    return path


def _stages(run: RunRecord) -> dict[str, Any] | None:
    """Return a line for each stage of a student: what it is, its rounds, and its last scores."""
    if not (run.folder / FIRST_STAGE / "metrics.jsonl").is_file():
        return None  # gone on with in another folder
    first = read_run(run.folder / FIRST_STAGE)
    rows = []
    for name, stage in (("clusters of a frozen backbone", first), ("network that learned them", run)):
        final = stage.final
        scores = [MISSING if final is None else percent(value) for value in _scores(final)]
        rows.append([name, str(stage.rows[-1].round), *scores, f"{stage.minutes:.1f}"])
    head = ["stage", "rounds", "mIoU", "accuracy", "minutes"]
    return {"head": head, "rows": rows, "link": f"{FIRST_STAGE}/report.html"}


def _scores(row: RoundRecord | None) -> tuple[float | None, float | None]:
    return (None, None) if row is None else (row.miou, row.accuracy)


def _scored_on(run: RunRecord) -> str:
    """Name what the headline's score was taken on: the first of several test sets."""
    if run.is_network:
        return f", {run.sets[0].name}" if run.sets else ""
    return f", {run.final.split}" if run.final is not None and run.final.split else ""


def _pairs(run: RunRecord) -> list[tuple[str, TestSet, str]]:
    """Return (title, test set, prefix of its keys) of each network that was scored: the shared one, the clusters'."""
    pairs = []
    for one in run.sets:
        pairs.append((f"{one.name}, shared network" if one.clustered else one.name, one, ""))
        pairs += [(f"{one.name}, clusters", one, "cluster_")] if one.clustered else []
    return pairs


def _sets(run: RunRecord) -> dict[str, Any]:
    """Return a line a test set: last scored round, mean of the last rounds, spread over domains and sites."""
    sets, count = run.sets, run.last_count
    rounds = max(len(one.last("miou", count)) for one in sets)
    whose = ["", "cluster_"] if any(one.clustered for one in sets) else [""]
    title = {"": "", "cluster_": "clusters' "}
    spreads = [k for k in ("domain", "site") if any(getattr(one.final, f"{k}_miou_mean") for one in sets)]
    spans = [1, count] if rounds > 1 else [1]
    head = ["test set", "images"]
    head += [f"{title[w]}mIoU %" + (f", last {rounds} rounds" if n > 1 else "") for w in whose for n in spans]
    head += ["accuracy %", *(f"{title[w]}mIoU % by {kind}" for kind in spreads for w in whose)]
    rows = []
    for one in sets:
        cells = [one.name, str(one.final.images or MISSING)]
        cells += [mean_and_spread(one.last(f"{w}miou", n)) for w in whose for n in spans]
        cells.append(mean_and_spread(one.last("accuracy", 1)))
        rows.append([*cells, *(_spread(one, w + kind) for kind in spreads for w in whose)])
    note = [f"Round {sets[0].records[-1][0]:.0f} where nothing else is said"]
    note += [f"last {rounds} rounds: mean ± sample deviation of the last scored ones"] if rounds > 1 else []
    note += [f"by {kind}: mean and deviation over the known {kind}s" for kind in spreads]
    note += ["clusters: every image by the network of the cluster nearest to its style"] if whose[1:] else []
    charts = []
    for kind in spreads:
        for one in sets:
            by_name = getattr(one.final, f"{kind}_miou") or {}
            bars = [(name, SERIES_COLOURS[0], value) for name, value in by_name.items() if value is not None]
            if bars:
                name = f"{one.name} by {kind}"
                charts.append((name, bar_chart(sorted(bars, key=lambda bar: -bar[2]), f"mIoU on {name}")))
    return {"head": head, "rows": rows, "note": "; ".join(note) + ".", "charts": charts}


def _spread(one: TestSet, kind: str) -> str:
    mean, deviation = (getattr(one.final, f"{kind}_miou_{what}") for what in ("mean", "std"))
    return MISSING if mean is None or deviation is None else f"{100 * mean:.1f} ± {100 * deviation:.1f}"


_CURVES = (  # title, field of a round, how its last value is written, whether the axis starts at 0
    ("mIoU", "miou", percent, True),
    ("Mean mIoU of the sites' own models", "site_miou_mean", percent, True),
    ("Pixel accuracy", "accuracy", percent, True),
    ("Training loss", "loss", short, False),
    ("Share of pixels whose pseudo-label is believed", "kept", percent, True),
    ("Mean cosine to the centroid", "mean_cosine", "{:.3f}".format, False),
    ("Centroid displacement per round", "displacement", short, True),
    ("Evenness of the clusters (entropy / log K)", "entropy", "{:.3f}".format, False),
)


def _curves(run: RunRecord) -> list[tuple[str, list[tuple[str, str]], str]]:
    """Return (title, names with colors, chart) of every figure that at least two rounds have."""
    charts = []
    for index, (title, key, label, from_zero) in enumerate(_CURVES):
        series: list[Series] = [(title, SERIES_COLOURS[index], run.curve(key))]
        if key == "miou" and run.is_network:
            series = [
                (name, SERIES_COLOURS[i % len(SERIES_COLOURS)], one.curve(f"{prefix}miou"))
                for i, (name, one, prefix) in enumerate(_pairs(run))
            ]
        if any(len(curve) > 1 for _, _, curve in series):
            chart = line_chart(series, f"{title} over the rounds", label, from_zero)
            charts.append((title, [(name, color) for name, color, _ in series], chart))
    return charts


def _classes(run: RunRecord) -> dict[str, Any] | None:
    """Return IoU by class: one column, or one for each test set and kind of network."""
    final, own = run.final, run.own
    means: list[tuple[str, list[float | None]]] = []
    in_labels = "mean over classes in the labels"
    if run.is_network and final is not None:
        pairs = [pair for pair in _pairs(run) if getattr(pair[1].final, f"{pair[2]}per_class_iou")]
        columns = [getattr(one.final, f"{prefix}per_class_iou") for _, one, prefix in pairs]
        means.append((in_labels, [getattr(one.final, f"{prefix}miou") for _, one, prefix in pairs]))
        head = [title for title, _, _ in pairs]
        note = "IoU; the bar shows the first column." if len(pairs) > 1 else "IoU."
    elif final is not None:
        columns, head = [final.per_class_iou], ["IoU"]
        means.append((in_labels, [final.miou]))
        if final.miou_all is not None and abs(final.miou_all - (final.miou or 0.0)) > 1e-9:
            means.append(("mean over all classes", [final.miou_all]))
        if final.published_miou is not None:
            means.append(("mean by the published conventions", [final.published_miou]))
        note = "Clusters were matched to classes once, on the summed confusion of all scored images"
        note += f" of '{final.split}'." if final.split else "."
    elif own is not None:
        columns, head = [own.site_per_class_iou], ["mean IoU"]
        note = "Clusters were matched to classes for each model by itself."
    else:
        return None
    if not columns or not columns[0]:
        return None
    title = f"Classes, round {(final or own or run.rows[-1]).round}"
    title += "" if final is not None else ", mean over the sites' own models"  # which is no model's score
    rows = [
        (name, run.colour_of(name, position), [(column or {}).get(name) for column in columns])
        for position, name in enumerate(columns[0])
    ]
    return {"title": title, "note": note, "head": head, "rows": rows, "means": means}


def _confusion(run: RunRecord) -> str | None:
    row = next((row for row in reversed(run.rows) if row.confusion), None)
    if row is None or row.confusion is None:
        return None
    counts, mapping = row.confusion, row.mapping or run.mapping
    names = list(row.per_class_iou or (run.classes.names if run.classes else ()))
    if mapping is None or len(mapping) != len(counts) or len(names) != len(counts[0]):
        return None
    spare = any(matched < 0 for matched in mapping)
    present = [
        (name, shares)
        for name, shares in zip(names, confusion_shares(counts, mapping, len(names)), strict=True)
        if shares is not None
    ]
    columns = [*names, "no class"] if spare else names
    alt = "Confusion of classes, in per cent of the true class"
    return confusion_chart([name for name, _ in present], columns, [shares for _, shares in present], alt)


def _coverage(run: RunRecord) -> dict[str, Any] | None:
    """Return how much each cluster covers, where that was counted."""
    row = next((row for row in reversed(run.rows) if row.cluster_share), None)
    if row is None or row.cluster_share is None:
        return None
    colours = cluster_colours(len(row.cluster_share))
    bars = [(_called(run, k), hex_colour(colours[k]), value) for k, value in enumerate(row.cluster_share)]
    what = "pixels" if run.is_network else "patches"
    chart = bar_chart(sorted(bars, key=lambda bar: -bar[2]), f"Share of all {what} of each cluster")
    return {"round": row.round, "chart": chart}


def _called(run: RunRecord, cluster: int) -> str:
    """Return a cluster's number, and the name that it has in the newest checkpoint."""
    matched = run.mapping[cluster] if run.mapping is not None and cluster < len(run.mapping) else -1
    name = run.classes.names[matched] if run.classes is not None and matched >= 0 else ""
    return f"{name} (cluster {cluster})" if name else f"cluster {cluster}"


_CELL = 380  # pixels: three columns fill the width of a report
_ALPHA = 0.74  # strong: images this small show their classes, not their texture


def contact_sheet(
    images: Sequence[Bytes],
    predictions: Sequence[Bytes],
    truths: Sequence[Bytes | None] | None,
    classes: ClassTable | None,
    mapping: Sequence[int] | None,
    num_clusters: int,
) -> Bytes:
    """Draw one row an image: image | prediction | truth, with the names of all colors below, as uint8 [H, W, 3].

    Args:
        images: RGB, uint8 [H, W, 3], of any size.
        predictions: cluster of every pixel, uint8 [H', W'].
        truths: true class of every pixel (255: not labelled), or None: two columns, image | clusters.
        classes: names and colors.
        mapping: class of each cluster, -1 for none; without it clusters keep their numbers.
        num_clusters: K.
    """
    if not images or len(images) != len(predictions):
        raise ValueError(
            f"{len(images)} images and {len(predictions)} predictions; expected as many, at least one."
        )
    legend = make_legend(num_clusters, classes, mapping)
    maps = [legend.apply(prediction) for prediction in predictions]
    shown = [truth for truth in truths or () if truth is not None]
    heads = ["image", "prediction" if mapping is not None else "clusters"] + (["truth"] if shown else [])
    rows = [[image, _painted(image, ids, legend)] for image, ids in zip(images, maps, strict=True)]
    used = set(present_ids(maps, legend))
    if classes is not None and shown:
        of_truth = truth_legend(classes)
        used |= set(present_ids(shown, of_truth))
        for row, truth in zip(rows, truths or (), strict=True):
            row += [] if truth is None else [_painted(row[0], truth, of_truth)]
    return image_grid(rows, heads, _CELL, legend=legend_entries(legend, sorted(used)))


def write_pictures(run_dir: Path, round_number: int, sheet: Bytes) -> Path:
    """Write the `contact_sheet` of a round to ``pictures/round-0003.png`` of a run and return the path."""
    path = run_dir / "pictures" / f"round-{round_number:04d}.png"
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG", compress_level=4)
    return path


def _painted(image: Bytes, ids: Bytes, legend: Legend) -> Bytes:
    """Lay a map over its image, which is brought to the map's size."""
    if image.shape[:2] != ids.shape:
        size = (ids.shape[1], ids.shape[0])
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return overlay(image, ids, legend, alpha=_ALPHA)
