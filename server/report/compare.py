"""How do several runs compare, seeds taken together?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean

from common.errors import UserError
from common.settings.schema import RunConfig
from common.settings.section import flatten
from common.system.atomic import atomic_write_text
from server.report.charts import SERIES_COLOURS, dot_plot, line_chart, percent, percent_tick, short
from server.report.compare_sets import (
    frequency_section,
    has_networks,
    is_clustered,
    rare_lines,
    score_columns,
    set_notes,
)
from server.report.data import read_run
from server.report.html import byte_text, embedded, page, picture, section, swatch, table
from server.report.methods import Method, all_sets, group
from server.report.test_sets import mean_and_spread

_DIFFER_FREELY = (
    "seed",
    "run-dir",
    "resume",
    "simulation.cache",
    "source.checkpoint",
    "source.styles",
    "eval.last",
)
_WIDE = 10
"""More columns than this do not fit the page."""


def _title(method: Method) -> str:
    """Return a method's name, marked where its figures are means over sites' own models."""
    return method.name + (" *" if method.own_models else "")


def _figures(methods: Sequence[Method]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the main table, as plain text."""
    columns = [
        ("method", [_title(method) for method in methods]),
        ("seeds", [str(len(method.runs)) for method in methods]),
        *score_columns(methods),
        ("rounds", ["/".join(sorted({str(run.rows[-1]["round"]) for run in m.runs})) for m in methods]),
        ("up / site+round", [byte_text(method.mean_bytes("bytes_up")) for method in methods]),
        ("down / site+round", [byte_text(method.mean_bytes("bytes_down")) for method in methods]),
        ("minutes", [f"{fmean(run.minutes for run in method.runs):.1f}" for method in methods]),
    ]
    rows = [list(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    return [title for title, _ in columns], rows


def _class_names(methods: Sequence[Method], test_set: str | None) -> list[str]:
    names: dict[str, None] = {}
    for method in methods:
        for record in method.class_records(test_set):
            names |= dict.fromkeys(record)
    return list(names)


def _notes(methods: Sequence[Method]) -> list[str]:
    notes = [
        "Last scored round of each run, never the best one; ± is the sample standard deviation over seeds."
    ]
    splits = sorted(
        {str(row["split"]) for m in methods for run in m.runs for row in run.rows if row.get("split")}
    )
    if splits:
        notes.append(f"Scored on: {', '.join(splits)}.")
    if len(splits) > 1:
        notes.append("Careful: the runs were scored on different splits.")
    if any(method.own_models for method in methods):
        matched = "" if has_networks(methods) else ", each matched by itself"
        notes.append(f"* no whole model is shared: the mean over the sites' own models{matched}.")
    notes += set_notes(methods)
    known = RunConfig().to_flat()  # what an older release could not be told, it did as is usual today
    for method in methods:
        settings = [
            {k: v for k, v in (known | flatten(run.config)).items() if k not in _DIFFER_FREELY}
            for run in method.runs
        ]
        odd = sorted({k for one in settings for k in one if one[k] != settings[0].get(k)})
        if odd:
            notes.append(f"Careful: the seeds of {method.name} differ in {', '.join(odd)} as well.")
    return notes


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    lines = []
    for line in [head, *rows]:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] + ["---:"] * (len(head) - 1), *[list(row) for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _class_tables(methods: Sequence[Method]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return a table of classes for every test set, and for the clusters' networks: (name, head, rows)."""
    sets: list[str | None] = [*all_sets(methods)] if has_networks(methods) else [None]
    tables = []
    for name in sets:
        for clusters in (False, True) if name is not None and is_clustered(methods, name) else (False,):
            classes = _class_names(methods, name)
            scored = [m for m in methods if any(m.class_iou(one, name, clusters) for one in classes)]
            rows = [
                [one, *(mean_and_spread(m.class_iou(one, name, clusters)) for m in scored)] for one in classes
            ]
            title = ", ".join(word for word in (name, "clusters" if clusters else "") if word)
            if rows and scored:
                tables.append((title, ["IoU %", *(_title(method) for method in scored)], rows))
    return tables


def comparison_text(run_dirs: Sequence[str | Path]) -> str:
    """Return the comparison as text for a terminal: one line a method."""
    methods = group([read_run(folder) for folder in run_dirs])
    rare = rare_lines(methods)
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
    folder = Path(out)
    head, rows = _figures(methods)
    notes = _notes(methods)
    markdown = [_markdown(head, rows), "", *notes]
    if (rare := rare_lines(methods)) is not None:
        markdown += ["", _markdown(*rare)]
    for title, class_head, class_rows in _class_tables(methods):
        markdown += ["", *([f"{title}:", ""] if title else []), _markdown(class_head, class_rows)]
    atomic_write_text(folder / "compare.md", "\n".join(markdown) + "\n")
    path = folder / "compare.html"
    atomic_write_text(path, page("Comparison of runs", _body(methods, head, rows, notes)))
    return path


def _body(methods: Sequence[Method], head: list[str], rows: list[list[str]], notes: list[str]) -> list[str]:
    colours = {method.name: SERIES_COLOURS[i % len(SERIES_COLOURS)] for i, method in enumerate(methods)}
    count = sum(len(method.runs) for method in methods)
    body = ["<h1>Comparison of runs</h1>", f'<p class="lead">{len(methods)} methods, {count} runs</p>']
    cells = [[swatch(colours[m.name], row[0]), *row[1:]] for m, row in zip(methods, rows, strict=True)]
    words = "".join(f'<p class="soft">{escape(note)}</p>' for note in notes)
    tables = [table(head, cells)]
    if len(head) > _WIDE:  # mIoU on every set, then accuracy and costs
        end = 1 + len(score_columns(methods))
        tables = [table(head[:end], [row[:end] for row in cells])]
        tables.append(
            "<br>" + table(head[:1] + head[end:], [row[:1] + row[end:] for row in cells], wide=False)
        )
    body.append(section("Result", *tables, f'<div style="margin-top:14px">{words}</div>'))
    body += [block for block in (_seeds(methods, colours), _curves(methods, colours)) if block]
    body += [block for block in (frequency_section(methods, colours), _class_section(methods)) if block]
    return body + [block for block in (_picture_section(methods),) if block]


def _shown_sets(methods: Sequence[Method]) -> list[tuple[str, str | None]]:
    """Return (title, test set) of what is drawn; runs without several sets have one, which has no name."""
    sets = all_sets(methods)
    if not has_networks(methods) or len(sets) < 2:
        return [("mIoU", None)]
    return [(f"mIoU, {name}", name) for name in sets]


def _seeds(methods: Sequence[Method], colours: Mapping[str, str]) -> str:
    """Return a dot a seed, for every test set."""
    plots = []
    for title, name in _shown_sets(methods):
        values = [m.finals("miou") if name is None else m.set_finals(name) for m in methods]
        groups = [(m.name, colours[m.name], found) for m, found in zip(methods, values, strict=True)]
        if any(values):
            heading = f"<h3>{escape(title)}</h3>" if name is not None else ""
            plots.append(heading + dot_plot(groups))
    if not plots:
        return ""
    return section("mIoU by seed", *plots, note="One dot a seed; the line is their mean.")


def _curves(methods: Sequence[Method], colours: Mapping[str, str]) -> str:
    """Return mIoU on every test set, and the loss, over the rounds."""
    wanted = [(title, "miou", name) for title, name in _shown_sets(methods)]
    charts = []
    for title, key, name in [*wanted, ("Training loss", "loss", None)]:
        series = [
            (
                m.name,
                colours[m.name],
                m.mean_curve("site_miou_mean" if key == "miou" and m.own_models else key, name),
            )
            for m in methods
        ]
        if any(len(curve) > 1 for _, _, curve in series):
            label = percent if key == "miou" else short
            tick = percent_tick if key == "miou" else label
            chart = line_chart(series, label=label, tick=tick, from_zero=key == "miou")
            charts.append(f"<div><h3>{escape(title)}</h3>{chart}</div>")
    if not charts:
        return ""
    names = "".join(f'<span class="chip">{swatch(colours[m.name], m.name)}</span>' for m in methods)
    grid = f'<p>{names}</p><div class="grid">{"".join(charts)}</div>'
    note = "Mean over seeds. Losses compare only within one objective."
    return section("Over the rounds", grid, note=note)


def _class_section(methods: Sequence[Method]) -> str:
    blocks = []
    for index, (title, head, rows) in enumerate(_class_tables(methods)):
        drawn = _marked_table(methods, head, rows)
        if title:
            opened = " open" if index == 0 else ""
            drawn = f"<details{opened}><summary>{escape(title)}</summary>{drawn}</details>"
        blocks.append(drawn)
    if not blocks:
        return ""
    return section("Classes", *blocks, note="IoU in per cent; bold: the best mean.")


def _marked_table(methods: Sequence[Method], head: list[str], rows: list[list[str]]) -> str:
    """Return a table of classes in which the best mean of a class is bold."""
    run = next(method.runs[0] for method in methods if _title(method) == head[1])
    cells = []
    for position, (name, *texts) in enumerate(rows):
        means = [float(text.split()[0]) if text != "–" else -1.0 for text in texts]
        best = max(means)
        marked = [
            f'<span class="best">{text}</span>' if mean == best > 0 and means.count(best) == 1 else text
            for text, mean in zip(texts, means, strict=True)
        ]
        cells.append([swatch(run.colour_of(name, position), name), *marked])
    return table(["class", *map(escape, head[1:])], cells)


def _picture_section(methods: Sequence[Method]) -> str:
    shown = [(m, m.runs[0]) for m in methods if m.runs[0].pictures]
    if not shown:
        return ""
    blocks = []
    for index, (method, run) in enumerate(shown):
        figure = picture(embedded(run.pictures[-1]), f"{method.name}, seed {run.seed}")
        opened = " open" if index == 0 else ""
        blocks.append(f"<details{opened}><summary>{escape(method.name)}</summary>{figure}</details>")
    return section("Pictures", *blocks, note="The first seed of each method, last drawn round.")
