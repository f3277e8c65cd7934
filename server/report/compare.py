"""The comparison of several runs, seeds taken together: a page, Markdown, and text for a terminal.

Figures stand side by side for every test set, on rare classes, with the shared network and with the clusters'.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from common.errors import UserError
from common.settings.load import migrated
from common.settings.schema import RunConfig
from common.settings.section import flatten
from common.system.atomic import atomic_write_text
from server.report.data import rarest, read_run
from server.report.methods import (
    Method,
    Table,
    all_sets,
    comparable,
    group,
    has_clusters,
    has_networks,
    pixel_shares,
    rare_table,
)
from server.report.render import (
    MISSING,
    SERIES_COLOURS,
    byte_text,
    dot_plot,
    frequency_chart,
    line_chart,
    mean_and_spread,
    percent,
    render_page,
    short,
)

# Headings, each with a cell a method.
Columns = list[tuple[str, list[str]]]

# Places of files, and over how many rounds a mean is read: no other method.
_DIFFER_FREELY = (
    "seed",
    "run-dir",
    "resume",
    "simulation.cache",
    "source.checkpoint",
    "source.styles",
    "eval.last",
)
_WIDE = 10  # more columns than this do not fit the page


def comparison_text(run_dirs: Sequence[str | Path]) -> str:
    """Return the comparison as text for a terminal: one line a method."""
    methods = group([read_run(folder) for folder in run_dirs])
    rare = rare_table(methods)
    blocks = [_aligned(*_figures(methods)), "\n".join(_notes(methods))]
    return "\n\n".join(blocks + ([_aligned(*rare)] if rare is not None else []))


def compare(run_dirs: Sequence[str | Path], out: str | Path) -> Path:
    """Write ``compare.html`` and ``compare.md`` into the folder ``out``; return the path of the page.

    Runs of one name are seeds of one method. Raises `UserError` for a folder that is no run directory, for
    a seed given twice, and where nothing was given.
    """
    if not run_dirs:
        raise UserError(
            "No run directory was given; name at least one, for example runs/camvid-default-seed0."
        )
    methods = group([read_run(folder) for folder in run_dirs])
    head, rows = _figures(methods)
    notes, tables = _notes(methods), _class_tables(methods)
    markdown = [_markdown(head, rows), "", *notes]
    if (rare := rare_table(methods)) is not None:
        markdown += ["", _markdown(*rare)]
    for title, class_head, class_rows in tables:
        markdown += ["", *([f"{title}:", ""] if title else []), _markdown(["IoU %", *class_head], class_rows)]
    colors = {m.name: SERIES_COLOURS[i % len(SERIES_COLOURS)] for i, m in enumerate(methods)}
    named = [(colors[m.name], row) for m, row in zip(methods, rows, strict=True)]
    results = [(head, named)]
    if len(head) > _WIDE:  # mIoU on every set, then accuracy and costs
        end = 1 + len(_score_columns(methods))
        results = [(head[:end], [(color, row[:end]) for color, row in named])]
        results.append((head[:1] + head[end:], [(color, row[:1] + row[end:]) for color, row in named]))
    firsts = [(method.name, method.runs[0]) for method in methods]
    page = render_page(
        "compare",
        methods=methods,
        results=results,
        notes=notes,
        entries=list(colors.items()),
        seeds=_seeds(methods, colors),
        curves=_curves(methods, colors),
        rare=_rare(methods, colors),
        classes=[_marked(methods, *one) for one in tables],
        pictures=[(name, run.seed, _embedded(run.pictures[-1])) for name, run in firsts if run.pictures],
    )
    atomic_write_text(Path(out) / "compare.md", "\n".join(markdown) + "\n")
    path = Path(out) / "compare.html"
    atomic_write_text(path, page)
    return path


def _figures(methods: Sequence[Method]) -> Table:
    """Return head and rows of the main table, as plain text."""
    columns: Columns = [
        ("method", [method.title for method in methods]),
        ("seeds", [str(len(method.runs)) for method in methods]),
        *_score_columns(methods),
        ("rounds", ["/".join(sorted({str(run.rows[-1].round) for run in m.runs})) for m in methods]),
        ("up / site+round", [byte_text(method.mean_bytes("bytes_up")) for method in methods]),
        ("down / site+round", [byte_text(method.mean_bytes("bytes_down")) for method in methods]),
        ("minutes", [f"{fmean(run.minutes for run in method.runs):.1f}" for method in methods]),
    ]
    rows = [list(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    return [title for title, _ in columns], rows


def _score_columns(methods: Sequence[Method]) -> Columns:
    """Return the quality columns of the main table.

    Frozen features with centroids: mIoU and accuracy. Networks: for every test set the last scored round and the
    mean of the last rounds, and both for the clusters' networks where there are any.
    """
    accuracy = ("accuracy %", [mean_and_spread(method.finals("accuracy")) for method in methods])
    sets = all_sets(methods)
    if not has_networks(methods) or not sets:
        return [("mIoU %", [mean_and_spread(method.finals("miou")) for method in methods]), accuracy]
    columns: Columns = []
    for index, name in enumerate(sets):
        prefix = f"{name} " if len(sets) > 1 else ""
        for key, whose in (("miou", ""), ("cluster_miou", "clusters ")):
            if key == "cluster_miou" and not has_clusters(methods, name):
                continue
            finals = [
                m.finals(key) if m.own_models and key == "miou" and not index else m.set_finals(name, key)
                for m in methods
            ]
            last = [method.last_rounds(name, key) for method in methods]
            columns.append((f"{prefix}{whose or 'mIoU '}%", [mean_and_spread(values) for values in finals]))
            columns.append((f"{prefix}{whose}last %", [mean_and_spread(values) for values in last]))
    prefix = f"{sets[0]} " if len(sets) > 1 else ""
    return [*columns, (prefix + accuracy[0], accuracy[1])]


def _notes(methods: Sequence[Method]) -> list[str]:
    """Say what a reader of the figures has to know."""
    notes = [
        "Last scored round of each run, never the best one; ± is the sample standard deviation over seeds."
    ]
    splits = sorted({row.split for m in methods for run in m.runs for row in run.rows if row.split})
    notes += [f"Scored on: {', '.join(splits)}."] if splits else []
    notes += ["Careful: the runs were scored on different splits."] if len(splits) > 1 else []
    networks = has_networks(methods)
    if any(method.own_models for method in methods):
        matched = "" if networks else ", each matched by itself"
        notes.append(f"* no whole model is shared: the mean over the sites' own models{matched}.")
    if networks:
        span = "/".join(map(str, sorted({run.last_count for method in methods for run in method.runs})))
        notes.append(
            f"Last: the mean mIoU over the last {span} scored rounds of each run (eval.last), or over all of fewer."
        )
        if any(has_clusters(methods, name) for name in all_sets(methods)):
            notes.append(
                "Clusters: mIoU where every image is segmented by the network of the style cluster nearest to it."
            )
    known = RunConfig().to_flat()  # what an older release could not be told, it did as is usual today
    for method in methods:
        settings = [
            {k: v for k, v in (known | migrated(flatten(run.config))).items() if k not in _DIFFER_FREELY}
            for run in method.runs
        ]
        odd = sorted({k for one in settings for k in one if one[k] != settings[0].get(k)})
        if odd:
            notes.append(f"Careful: the seeds of {method.name} differ in {', '.join(odd)} as well.")
    return notes


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    texts = [
        "  ".join(
            f"{c:>{w}}" if i else f"{c:<{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join(text.rstrip() for text in texts)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _class_tables(methods: Sequence[Method]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return a table of classes for every test set, and for the clusters' networks: (name, methods, rows)."""
    sets: list[str | None] = [*all_sets(methods)] if has_networks(methods) else [None]
    tables = []
    for name in sets:
        for clusters in (False, True) if name is not None and has_clusters(methods, name) else (False,):
            classes = list(
                dict.fromkeys(
                    one for method in methods for found in method.class_records(name) for one in found
                )
            )
            scored = [m for m in methods if any(m.class_iou(one, name, clusters) for one in classes)]
            rows = [
                [one, *(mean_and_spread(m.class_iou(one, name, clusters)) for m in scored)] for one in classes
            ]
            title = ", ".join(word for word in (name, "clusters" if clusters else "") if word)
            if rows and scored:
                tables.append((title, [method.title for method in scored], rows))
    return tables


def _marked(methods: Sequence[Method], title: str, head: list[str], rows: list[list[str]]) -> tuple[Any, ...]:
    """Add to each class its color, and the place of its best mean where there is one alone."""
    run = next(method.runs[0] for method in methods if method.title == head[0])
    marked = []
    for position, (name, *texts) in enumerate(rows):
        means = [float(text.split()[0]) if text != MISSING else -1.0 for text in texts]
        best = max(means)
        place = means.index(best) if best > 0 and means.count(best) == 1 else None
        marked.append((run.colour_of(name, position), name, texts, place))
    return title, head, marked


def _shown_sets(methods: Sequence[Method]) -> list[tuple[str, str | None]]:
    """Return (title, test set) of what is drawn; runs without several sets have one, which has no name."""
    sets = all_sets(methods)
    if not has_networks(methods) or len(sets) < 2:
        return [("mIoU", None)]
    return [(f"mIoU, {name}", name) for name in sets]


def _seeds(methods: Sequence[Method], colors: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return a dot a seed, for every test set: (title, chart)."""
    plots = []
    for title, name in _shown_sets(methods):
        values = [m.finals("miou") if name is None else m.set_finals(name) for m in methods]
        if any(values):
            groups = [(m.name, colors[m.name], found) for m, found in zip(methods, values, strict=True)]
            plots.append((title, dot_plot(groups, f"{title} of every seed")))
    return plots


def _curves(methods: Sequence[Method], colors: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return mIoU on every test set, and the loss, over the rounds: (title, chart)."""
    charts = []
    for title, key, name in [
        *((t, "miou", n) for t, n in _shown_sets(methods)),
        ("Training loss", "loss", None),
    ]:
        keys = ["site_miou_mean" if key == "miou" and m.own_models else key for m in methods]
        series = [
            (m.name, colors[m.name], m.mean_curve(own, name)) for m, own in zip(methods, keys, strict=True)
        ]
        if any(len(curve) > 1 for _, _, curve in series):
            label = percent if key == "miou" else short
            charts.append((title, line_chart(series, f"{title} over the rounds", label, key == "miou")))
    return charts


def _rare(methods: Sequence[Method], colors: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the plot of IoU against frequency with the table of rare classes."""
    table = rare_table(methods)
    if table is None:
        return None
    fits = comparable(methods)
    scored, trained = pixel_shares(fits[0])
    shares = trained or scored
    curves = [
        (m.name, colors[m.name], {name: fmean(found) for name in shares if (found := m.class_iou(name))})
        for m in fits
    ]
    note = f"Rarest: {', '.join(rarest(shares))}. Shares of pixels "
    note += "are those of the sites' training images, IoU is that" if trained else "and IoU are those"
    left_out = ", ".join(method.name for method in methods if method not in fits)
    note += " of the first test set" + (f"; of other pixels: {left_out}." if left_out else ".")
    return {
        "note": note,
        "entries": [(m.name, colors[m.name]) for m in fits],
        "chart": frequency_chart(shares, curves, "IoU of each class against its share of pixels"),
        "head": table[0],
        "rows": [(colors[row[0]], row) for row in table[1]],
    }


def _embedded(path: Path) -> str:
    """Return an image file as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
