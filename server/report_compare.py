"""How do several runs compare, seeds taken together?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean, stdev

from common.atomic import atomic_write_text
from common.config import flatten
from common.errors import UserError
from server.report_data import Run, read_run
from server.report_html import byte_text, embedded, page, picture, section, swatch, table
from server.report_svg import SERIES_COLOURS, dot_plot, line_chart, percent, percent_tick

_DIFFER_FREELY = ("seed", "run-dir", "resume", "simulation.cache")


@dataclass(frozen=True)
class Method:
    """The runs of one name; they differ in the seed."""

    name: str
    runs: tuple[Run, ...]

    @property
    def own_models(self) -> bool:
        """Whether each site kept its own model, so that a score is a mean over sites' models."""
        return all(run.final is None and run.scored("site_miou_mean") for run in self.runs)

    def finals(self, key: str) -> list[float]:
        """Values of the last scored round of each seed.

        Where each site keeps its own model, ``miou`` and ``accuracy`` are means over those models.
        """
        source = f"site_{key}_mean" if self.own_models else key
        rows = [run.scored("site_miou_mean" if self.own_models else "miou") for run in self.runs]
        return [float(r[-1][source]) for r in rows if r and isinstance(r[-1].get(source), int | float)]

    def class_iou(self, name: str) -> list[float]:
        """IoU of one class in the last scored round of each seed."""
        found = [(run.final or {}).get("per_class_iou") or {} for run in self.runs]
        return [float(values[name]) for values in found if values.get(name) is not None]

    def mean_bytes(self, key: str) -> float | None:
        """Mean payload per site and round."""
        values = [value for run in self.runs if (value := run.site_bytes(key)) is not None]
        return fmean(values) if values else None

    def mean_curve(self, key: str) -> list[tuple[float, float]]:
        """Mean over seeds, at the rounds that every seed has."""
        curves = [dict(run.curve(key)) for run in self.runs if run.curve(key)]
        if not curves:
            return []
        shared = sorted(set.intersection(*(set(curve) for curve in curves)))
        return [(number, fmean(curve[number] for curve in curves)) for number in shared]


def group(runs: Sequence[Run]) -> list[Method]:
    """Put runs of one name together, best mean mIoU first; a seed that comes twice is an error."""
    named: dict[str, list[Run]] = {}
    for run in runs:
        named.setdefault(run.name, []).append(run)
    for name, members in named.items():
        seeds = [run.seed for run in members]
        twice = {seed for seed in seeds if seeds.count(seed) > 1}
        if twice:
            folders = " and ".join(str(run.folder) for run in members if run.seed in twice)
            raise UserError(
                f"Seed {min(twice)} of '{name}' was given twice ({folders}); "
                "give each run once, or another name."
            )
    methods = [Method(name, tuple(sorted(members, key=lambda r: r.seed))) for name, members in named.items()]
    return sorted(methods, key=lambda m: -fmean(m.finals("miou")) if m.finals("miou") else 1.0)


def mean_and_spread(values: Sequence[float]) -> str:
    """Per cent: ``23.4 ± 1.1`` (sample standard deviation), ``23.4`` for one seed, a dash for none."""
    if not values:
        return "–"
    mean = f"{100 * fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * stdev(values):.1f}"


def _figures(methods: Sequence[Method]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the main table, as plain text."""
    head = [
        "method",
        "seeds",
        "mIoU %",
        "accuracy %",
        "rounds",
        "up / site+round",
        "down / site+round",
        "minutes",
    ]
    rows = []
    for method in methods:
        rows.append(
            [
                method.name + (" *" if method.own_models else ""),
                str(len(method.runs)),
                mean_and_spread(method.finals("miou")),
                mean_and_spread(method.finals("accuracy")),
                "/".join(sorted({str(run.rows[-1]["round"]) for run in method.runs})),
                byte_text(method.mean_bytes("bytes_up")),
                byte_text(method.mean_bytes("bytes_down")),
                f"{fmean(run.minutes for run in method.runs):.1f}",
            ]
        )
    return head, rows


def _class_names(methods: Sequence[Method]) -> list[str]:
    names: dict[str, None] = {}
    for method in methods:
        for run in method.runs:
            names |= dict.fromkeys((run.final or {}).get("per_class_iou") or {})
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
        notes.append("* nothing is shared: the mean over the sites' own models, each matched by itself.")
    for method in methods:
        settings = [
            {k: v for k, v in flatten(run.config).items() if k not in _DIFFER_FREELY} for run in method.runs
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


def _class_table(methods: Sequence[Method]) -> tuple[list[str], list[list[str]]]:
    names = _class_names(methods)
    scored = [method for method in methods if any(method.class_iou(name) for name in names)]
    rows = [[name, *(mean_and_spread(method.class_iou(name)) for method in scored)] for name in names]
    return ["IoU %", *(method.name for method in scored)], rows


def comparison_text(run_dirs: Sequence[str | Path]) -> str:
    """Return the comparison as text for a terminal: one line a method."""
    methods = group([read_run(folder) for folder in run_dirs])
    return _aligned(*_figures(methods)) + "\n\n" + "\n".join(_notes(methods))


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
    class_head, class_rows = _class_table(methods)
    notes = _notes(methods)
    markdown = [_markdown(head, rows), "", *notes]
    if class_rows:
        markdown += ["", _markdown(class_head, class_rows)]
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
    body.append(section("Result", table(head, cells), f'<div style="margin-top:14px">{words}</div>'))
    groups = [(method.name, colours[method.name], method.finals("miou")) for method in methods]
    if any(values for _, _, values in groups):
        body.append(section("mIoU by seed", dot_plot(groups), note="One dot a seed; the line is their mean."))
    charts = []
    for title, key, label in (("mIoU", "miou", percent), ("Training loss", "loss", lambda v: f"{v:.3g}")):
        series = [
            (
                m.name,
                colours[m.name],
                m.mean_curve("site_miou_mean" if key == "miou" and m.own_models else key),
            )
            for m in methods
        ]
        if any(len(curve) > 1 for _, _, curve in series):
            tick = percent_tick if key == "miou" else label
            chart = line_chart(series, label=label, tick=tick, from_zero=key == "miou")
            charts.append(f"<div><h3>{title}</h3>{chart}</div>")
    if charts:
        names = "".join(f'<span class="chip">{swatch(colours[m.name], m.name)}</span>' for m in methods)
        grid = f'<p>{names}</p><div class="grid">{"".join(charts)}</div>'
        body.append(
            section(
                "Over the rounds", grid, note="Mean over seeds. Losses compare only within one objective."
            )
        )
    body += [block for block in (_class_section(methods), _picture_section(methods)) if block]
    return body


def _class_section(methods: Sequence[Method]) -> str:
    head, rows = _class_table(methods)
    if not rows:
        return ""
    scored = [method for method in methods if method.name in head[1:]]
    run = scored[0].runs[0]
    cells = []
    for position, row in enumerate(rows):
        means = [fmean(values) if (values := method.class_iou(row[0])) else -1.0 for method in scored]
        best = max(means)
        marked = [
            f'<span class="best">{text}</span>' if mean == best > 0 and means.count(best) == 1 else text
            for text, mean in zip(row[1:], means, strict=True)
        ]
        cells.append([swatch(run.colour_of(row[0], position), row[0]), *marked])
    return section(
        "Classes",
        table(["class", *map(escape, head[1:])], cells),
        note="IoU in per cent; bold: the best mean.",
    )


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
