"""How well is each class found, and what is it taken for?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server.report.charts import confusion_chart, percent
from server.report.data import Run
from server.report.html import bar, section, swatch, table
from server.report.networks import classes_section, columns, is_network
from server.report.test_sets import find_sets


def split_words(run: Run) -> str:
    """Name what the headline's score was taken on: the first of several test sets."""
    if is_network(run):
        return f", {find_sets(run)[0].name}"
    return f", {run.final['split']}" if run.final is not None and run.final.get("split") else ""


def quality_section(run: Run) -> str:
    """Return IoU by class beside the confusion of classes, as far as there were labels."""
    if is_network(run) and columns(run) > 1:  # too wide to stand side by side
        return classes_section(run) + _confusion(run)
    classes = classes_section(run) if is_network(run) else _classes(run)
    return f'<div class="row">{classes}{_confusion(run)}</div>'


def _classes(run: Run) -> str:
    final = run.final
    if final is None:
        return _own_classes(run)
    if not final.get("per_class_iou"):
        return ""
    rows = _class_rows(run, final["per_class_iou"])
    rows.append(["mean over classes in the labels", "", percent(final["miou"])])
    if final.get("miou_all") is not None and abs(final["miou_all"] - final["miou"]) > 1e-9:
        rows.append(["mean over all classes", "", percent(final["miou_all"])])
    return section(
        f"Classes, round {final['round']}",
        table(["class", "", "IoU"], rows, numbers_from=2, wide=False),
        note="Clusters were matched to classes once, on the summed confusion of all scored images"
        + (f" of '{final['split']}'." if final.get("split") else "."),
    )


def _class_rows(run: Run, values: Mapping[str, float | None]) -> list[list[str]]:
    """Return one line a class with its IoU as a bar."""
    rows = []
    for position, (name, value) in enumerate(values.items()):
        colour = run.colour_of(name, position)
        if value is None:
            rows.append([swatch(colour, name), '<span class="soft">not in the labels</span>', "–"])
        else:
            rows.append([swatch(colour, name), bar(value, colour), percent(value)])
    return rows


def _own_classes(run: Run) -> str:
    """Return the classes of a run whose sites keep their own models: means over these, which are no model's."""
    own = [row for row in run.scored("site_miou_mean") if row.get("site_per_class_iou")]
    if not own:
        return ""
    rows = _class_rows(run, own[-1]["site_per_class_iou"])
    return section(
        f"Classes, round {own[-1]['round']}, mean over the sites' own models",
        table(["class", "", "mean IoU"], rows, numbers_from=2, wide=False),
        note="Clusters were matched to classes for each model by itself.",
    )


def _confusion(run: Run) -> str:
    rows = [row for row in run.rows if row.get("confusion")]
    if not rows:
        return ""
    counts = rows[-1]["confusion"]
    mapping = rows[-1].get("mapping") or run.mapping
    names = list((rows[-1].get("per_class_iou") or {}).keys()) or (
        list(run.classes.names) if run.classes else []
    )
    if mapping is None or len(mapping) != len(counts) or len(names) != len(counts[0]):
        return ""
    spare = any(matched < 0 for matched in mapping)
    shares = confusion_shares(counts, mapping, len(names))
    present = [index for index, row in enumerate(shares) if row[0] is not None]
    columns = [*names, "no class"] if spare else names
    chart = confusion_chart([names[i] for i in present], columns, [shares[i] for i in present])
    return section(
        "Confusion" + (split_words(run) if is_network(run) else ""),
        chart,
        note="Where the pixels of each true class (down) went (across), in per cent of the class; "
        "framed cells are right.",
    )


def confusion_shares(
    counts: Sequence[Sequence[int]], mapping: Sequence[int], num_classes: int
) -> list[list[float | None]]:
    """Turn counts [K, C] of clusters by classes into shares [C true, C predicted (+ 1: no class)].

    Rows of classes without pixels are None.
    """
    spare = any(matched < 0 for matched in mapping)
    merged = [[0] * (num_classes + spare) for _ in range(num_classes)]
    for cluster, matched in enumerate(mapping):
        for true in range(num_classes):
            merged[true][matched if matched >= 0 else num_classes] += int(counts[cluster][true])
    return [[value / sum(row) for value in row] if sum(row) else [None] * len(row) for row in merged]
