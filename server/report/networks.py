"""What does the page of one run show where a whole network was trained: test sets, classes, clusters, styles?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from common.data.manifest import natural_key
from common.settings.section import flatten
from server.report.charts import SERIES_COLOURS, Series, bar_chart, line_chart, percent, percent_tick
from server.report.data import Run
from server.report.html import bar, picture, section, swatch, table
from server.report.test_sets import TestSet, find_sets, last_count, mean_and_spread

STYLES_PICTURE = "styles.png"
"""As `server.adaptation.pretrain` calls it; a report does without torch."""

CLUSTERS_FILE = "clusters.json"
"""As `server.adaptation.styles` calls it."""

Pair = tuple[TestSet, str]
"""A test set and whose network: "" for the shared one, "cluster_" for those of the style clusters."""


def is_network(run: Run) -> bool:
    """Whether the run trained a whole network."""
    return str(run.config.get("task", "unsupervised")) != "unsupervised"


def header_words(run: Run) -> list[str]:
    """Return what was trained, how, and how sites were treated."""
    flat = flatten(run.config)
    words = [f"task {flat.get('task')}", f"DeepLabV3-MobileNetV2, stride {flat.get('network.output-stride')}"]
    words.append(f"{flat.get('reduction.kind')} loss")
    if flat.get("network.batchnorm") not in (None, "shared"):
        words.append(f"batch norms: {flat['network.batchnorm']}")
    if flat.get("style.transfer") not in (None, "none"):
        words.append(f"styles: {flat['style.transfer']}")
    if flat.get("clusters.layers") not in (None, "none"):
        words.append(f"clusters own: {flat['clusters.layers']}")
    if flat.get("task") == "adaptation":
        words.append(f"teacher: {flat.get('teacher.update')}")
    return words


def _pairs(sets: Sequence[TestSet]) -> list[Pair]:
    """Return what there is to show of each set: the shared network, then the clusters'."""
    return [(one, kind) for one in sets for kind in ("", "cluster_") if not kind or one.clustered]


def _title(pair: Pair, sets: Sequence[TestSet]) -> str:
    one, kind = pair
    whose = "clusters" if kind else "shared network" if one.clustered else ""
    return ", ".join(word for word in (one.name, whose) if word)


def sets_section(run: Run) -> str:
    """Return one line a test set: last scored round, mean of the last rounds, spread over domains and sites."""
    sets = find_sets(run)
    if not sets:
        return ""
    count = last_count(run)
    rounds = max(len(one.last("miou", count)) for one in sets)
    clustered = any(one.clustered for one in sets)
    spreads = [k for k in ("domain", "site") if any(f"{k}_miou_mean" in one.final for one in sets)]
    head = ["test set", "images"]
    for whose in ("mIoU %", "clusters' mIoU %") if clustered else ("mIoU %",):
        head += [whose] + ([f"{whose}, last {rounds} rounds"] if rounds > 1 else [])
    parts = [(prefix, kind) for kind in spreads for prefix in (("", "cluster_") if clustered else ("",))]
    head += [
        "accuracy %",
        *(("clusters' " if prefix else "") + f"mIoU % by {kind}" for prefix, kind in parts),
    ]
    rows = []
    for one in sets:
        cells = [escape(one.name), str(one.final.get("images") or "–")]
        for key in ("miou", "cluster_miou") if clustered else ("miou",):
            cells += [mean_and_spread(one.last(key, n)) for n in ((1, count) if rounds > 1 else (1,))]
        cells.append(mean_and_spread(one.last("accuracy", 1)))
        rows.append([*cells, *(_spread(one, prefix + kind) for prefix, kind in parts)])
    words = [f"Round {sets[0].records[-1][0]:.0f} where nothing else is said"]
    words += [f"last {rounds} rounds: mean ± sample deviation of the last scored ones"] if rounds > 1 else []
    words += [f"by {kind}: mean and deviation over the known {kind}s" for kind in spreads]
    words += ["clusters: every image by the network of the cluster nearest to its style"] if clustered else []
    bars = [_bars(one, kind) for kind in spreads for one in sets if one.final.get(f"{kind}_miou")]
    blocks = [table(head, rows), *bars]
    return section("Test sets", *blocks, note="; ".join(words) + ".")


def _spread(one: TestSet, kind: str) -> str:
    mean, deviation = one.final.get(f"{kind}_miou_mean"), one.final.get(f"{kind}_miou_std")
    return "–" if mean is None or deviation is None else f"{100 * mean:.1f} ± {100 * deviation:.1f}"


def _bars(one: TestSet, kind: str) -> str:
    found: dict[str, float] = {k: v for k, v in one.final[f"{kind}_miou"].items() if v is not None}
    bars = [(name, SERIES_COLOURS[0], value) for name, value in sorted(found.items(), key=lambda i: -i[1])]
    return f"<details><summary>{escape(one.name)} by {kind}</summary>{bar_chart(bars)}</details>"


def columns(run: Run) -> int:
    """Return how many columns of scores `classes_section` has."""
    return len(_pairs(find_sets(run)))


def classes_section(run: Run) -> str:
    """Return one line a class, one column a test set and kind of network."""
    sets = find_sets(run)
    pairs = [pair for pair in _pairs(sets) if pair[0].final.get(f"{pair[1]}per_class_iou")]
    if not pairs:
        return ""
    values = [pair[0].final[f"{pair[1]}per_class_iou"] for pair in pairs]
    rows = []
    for position, name in enumerate(values[0]):
        colour = run.colour_of(name, position)
        first = values[0][name]
        drawn = '<span class="soft">not in the labels</span>' if first is None else bar(first, colour)
        cells = [_cell(one.get(name)) for one in values]
        rows.append([swatch(colour, name), drawn, *cells])
    means = [pair[0].final.get(f"{pair[1]}miou") for pair in pairs]
    rows.append(["mean over classes in the labels", "", *map(_cell, means)])
    head = ["class", "", *(escape(_title(pair, sets)) for pair in pairs)]
    note = "IoU; the bar shows the first column." if len(pairs) > 1 else "IoU."
    return section(
        f"Classes, round {int(pairs[0][0].records[-1][0])}",
        table(head, rows, numbers_from=2, total=True, wide=False),
        note=note,
    )


def _cell(value: float | None) -> str:
    return "–" if value is None else percent(value)


def sets_chart(run: Run) -> str:
    """Return mIoU over the rounds: a curve for each test set and kind of network."""
    sets = find_sets(run)
    series: list[Series] = []
    for index, pair in enumerate(_pairs(sets)):
        colour = SERIES_COLOURS[index % len(SERIES_COLOURS)]
        series.append((_title(pair, sets), colour, pair[0].curve(f"{pair[1]}miou")))
    if not any(len(curve) > 1 for _, _, curve in series):
        return ""
    names = "".join(f'<span class="chip">{swatch(colour, name)}</span>' for name, colour, _ in series)
    chart = line_chart(series, label=percent, tick=percent_tick, from_zero=True)
    return f"<div><h3>mIoU</h3>{names if len(series) > 1 else ''}{chart}</div>"


def styles_section(run: Run) -> str:
    """Return the pictures of source images in the sites' styles, where they were drawn; many sites make several."""
    first = run.folder / "pictures" / STYLES_PICTURE
    if not first.is_file():
        return ""
    others = sorted(
        first.parent.glob(f"{first.stem}-*{first.suffix}"), key=lambda file: natural_key(file.name)
    )
    return section(
        "Source images in the sites' styles",
        *(picture(f"pictures/{file.name}") for file in (first, *others)),
        note="Pretraining sees source images like these. Only styles leave a site, never its pictures.",
    )


def clusters_section(run: Run) -> str:
    """Return which sites are together, and how the number of clusters was found; "" where there are none."""
    path = run.folder / CLUSTERS_FILE
    if not path.is_file():
        return ""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        members = [[str(site) for site in sites] for sites in found["clusters"]]
        scores = sorted((int(k), float(score)) for k, score in found.get("silhouettes", {}).items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return section("Style clusters", f"<p>{CLUSTERS_FILE} cannot be read.</p>")
    rows = [[f"cluster {k}", str(len(sites)), escape(", ".join(sites))] for k, sites in enumerate(members)]
    words = [f"{len(members)} cluster" + ("" if len(members) == 1 else "s")]
    if found.get("purity") is not None:
        words.append(
            f"purity {float(found['purity']):.2f} (share of sites in the main domain of their cluster)"
        )
    blocks = [table(["", "sites", "names"], rows, numbers_from=9)]
    if scores:
        tried = [[_chosen(str(k), k == len(members)), bar(score), f"{score:.3f}"] for k, score in scores]
        blocks.append(
            '<h3 style="margin-top:18px">Numbers of clusters that were tried</h3>'
            + table(["clusters", "", "silhouette"], tried, numbers_from=2, wide=False)
        )
    note = ". ".join([", ".join(words), str(found.get("note") or "").rstrip(".")]).rstrip(". ")
    return section("Style clusters", *blocks, note=note + ".")


def _chosen(text: str, chosen: bool) -> str:
    return f'<span class="best">{text}</span>' if chosen else text
