"""How do recipes compare on every test set, on rare classes, with the shared network and with the clusters'?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from server.report.data import Run
from server.report.frequency import class_shares, frequency_chart, rarest, trained_shares
from server.report.html import section, swatch, table
from server.report.methods import Method, all_sets
from server.report.networks import is_network
from server.report.test_sets import last_count, mean_and_spread

Column = tuple[str, list[str]]
"""A heading, and one cell a method."""


def has_networks(methods: Sequence[Method]) -> bool:
    """Whether any run trained a whole network."""
    return any(is_network(run) for method in methods for run in method.runs)


def is_clustered(methods: Sequence[Method], test_set: str) -> bool:
    """Whether networks of style clusters were scored on a test set."""
    return any(one.clustered for method in methods for one in method.sets(test_set))


def score_columns(methods: Sequence[Method]) -> list[Column]:
    """Return the quality columns of the main table.

    Frozen features with centroids: mIoU and accuracy. Networks: for every test set the last scored round and the
    mean of the last rounds, and both for the clusters' networks where there are any.
    """
    accuracy = ("accuracy %", [mean_and_spread(method.finals("accuracy")) for method in methods])
    plain = ("mIoU %", [mean_and_spread(method.finals("miou")) for method in methods])
    sets = all_sets(methods)
    if not has_networks(methods) or not sets:
        return [plain, accuracy]
    columns: list[Column] = []
    for index, name in enumerate(sets):
        prefix = f"{name} " if len(sets) > 1 else ""
        for key, whose in (("miou", ""), ("cluster_miou", "clusters ")):
            if key == "cluster_miou" and not is_clustered(methods, name):
                continue
            finals = [
                method.finals("miou")
                if method.own_models and key == "miou" and not index
                else method.set_finals(name, key)
                for method in methods
            ]
            last = [method.last_rounds(name, key) for method in methods]
            columns.append((f"{prefix}{whose or 'mIoU '}%", [mean_and_spread(values) for values in finals]))
            columns.append((f"{prefix}{whose}last %", [mean_and_spread(values) for values in last]))
    prefix = f"{sets[0]} " if len(sets) > 1 else ""
    return [*columns, (prefix + accuracy[0], accuracy[1])]


def set_notes(methods: Sequence[Method]) -> list[str]:
    """Return what a reader of those columns has to know."""
    if not has_networks(methods):
        return []
    counts = sorted({last_count(run) for method in methods for run in method.runs})
    span = "/".join(map(str, counts))
    last = f"Last: the mean mIoU over the last {span} scored rounds of each run (eval.last), or over all of fewer."
    notes = [last]
    if any(is_clustered(methods, name) for name in all_sets(methods)):
        notes.append(
            "Clusters: mIoU where every image is segmented by the network of the style cluster nearest to it."
        )
    return notes


class Shares(NamedTuple):
    """Share of pixels by class: of the scored pixels, and of those trained on where they are known."""

    scored: dict[str, float]
    trained: dict[str, float]

    @property
    def best(self) -> dict[str, float]:
        """What says how rare a class is."""
        return self.trained or self.scored


def comparable_shares(methods: Sequence[Method]) -> tuple[Shares, list[Method], list[Method]]:
    """Return the classes' shares of pixels, the methods trained and scored on just these, and the others."""
    found = [(method, shares) for method in methods if (shares := _shares(method)).scored]
    if not found:
        return Shares({}, {}), [], []
    first = found[0][1]
    fits = [method for method, shares in found if shares == first]
    return first, fits, [method for method in methods if method not in fits]


def _shares(method: Method) -> Shares:
    runs: Sequence[Run] = method.runs
    return next(
        (Shares(shares, trained_shares(run)) for run in runs if (shares := class_shares(run))), Shares({}, {})
    )


def rare_table(methods: Sequence[Method], shares: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: the mean IoU of the rarest classes, and of the others, by method."""
    rare = rarest(shares)
    rows = []
    for method in methods:
        cells = [method.name]
        for names in (rare, [name for name in shares if name not in rare]):
            by_class = [method.class_iou(name) for name in names]
            by_class = [values for values in by_class if values]
            # a seed after the other: the mean over classes, whose spread over seeds is told
            seeds = zip(*by_class, strict=True) if len({len(v) for v in by_class}) == 1 else ()
            cells.append(mean_and_spread([fmean(values) for values in seeds]))
        rows.append(cells)
    return ["mean IoU %", f"{len(rare)} rarest classes", "other classes"], rows


def rare_lines(methods: Sequence[Method]) -> tuple[list[str], list[list[str]]] | None:
    """Return the table of rare classes where networks are compared that learnt from and met the same pixels."""
    shares, fits, _ = comparable_shares(methods)
    if not has_networks(methods) or not shares.scored:
        return None
    return rare_table(fits, shares.best)


def frequency_section(methods: Sequence[Method], colours: Mapping[str, str]) -> str:
    """Return the plot of IoU against frequency with the table of rare classes; "" where there are no networks."""
    lines = rare_lines(methods)
    if lines is None:
        return ""
    shares, fits, others = comparable_shares(methods)
    curves = []
    for method in fits:
        values = {name: fmean(found) for name in shares.best if (found := method.class_iou(name))}
        curves.append((method.name, colours[method.name], values))
    chips = "".join(f'<span class="chip">{swatch(colours[m.name], m.name)}</span>' for m in fits)
    head, rows = lines
    cells = [[swatch(colours[row[0]], row[0]), *row[1:]] for row in rows]
    left_out = [method.name for method in others]
    note = f"Rarest: {', '.join(rarest(shares.best))}. "
    if shares.trained:
        note += "Shares of pixels are those of the sites' training images, IoU is that of the first test set"
    else:
        note += "Shares of pixels and IoU are those of the first test set"
    note += f"; of other pixels: {', '.join(left_out)}" if left_out else ""
    return section(
        "Rare classes",
        f"<p>{chips}</p>",
        frequency_chart(shares.best, curves),
        table(head, cells, wide=False),
        note=note + ".",
    )
