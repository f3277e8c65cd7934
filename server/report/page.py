"""What does one run look like on a page?"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from common.evaluation.overlay import cluster_colours, hex_colour
from common.settings.section import flatten
from common.system.atomic import atomic_write_text
from server.report.charts import (
    SERIES_COLOURS,
    bar_chart,
    line_chart,
    percent,
    percent_tick,
    short,
)
from server.report.classes import quality_section, split_words
from server.report.compare import compare, comparison_text
from server.report.data import Run, read_run
from server.report.html import (
    byte_text,
    page,
    picture,
    section,
    settings_list,
    tiles,
)
from server.report.networks import (
    clusters_section,
    header_words,
    is_network,
    sets_chart,
    sets_section,
    styles_section,
)
from server.report.pictures import contact_sheet, write_pictures
from server.report.sites import rounds_section, sites_section
from server.report.test_sets import find_sets, last_count

__all__ = ["compare", "comparison_text", "contact_sheet", "write_pictures", "write_report"]


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run directory and return its path.

    The page refers to ``pictures/`` beside it and to nothing else. Raises `UserError` where the folder is
    no run directory or holds no round yet.
    """
    run = read_run(run_dir)
    body = [_header(run), _headline(run)]
    if is_network(run):
        blocks = [sets_section(run), _pictures(run), _curves(run), quality_section(run)]
        blocks += [clusters_section(run), styles_section(run)]
    else:
        blocks = [_pictures(run), _curves(run), quality_section(run), _clusters(run)]
    body += [block for block in blocks if block]
    body += [sites_section(run), rounds_section(run), _settings(run), _footer()]
    path = run.folder / "report.html"
    atomic_write_text(path, page(f"{run.name}, seed {run.seed}", body))
    return path


def _setting(run: Run, dotted: str) -> Any:
    return flatten(run.config).get(dotted)


def _header(run: Run) -> str:
    words = header_words(run) if is_network(run) else _cluster_words(run)
    if _setting(run, "centroids.share") == "none":
        words.append("nothing shared: each site trains alone")
    if _setting(run, "sites.pool"):
        words.append("all shards joined into one site (centralised)")
    words.append(f"seed {run.seed}")
    return f'<h1>{escape(run.name)}</h1><p class="lead">{escape("  ·  ".join(words))}</p>'


def _cluster_words(run: Run) -> list[str]:
    words = [f"preset {_setting(run, 'preset')}", str(_setting(run, "model.backbone")).replace("_", " ")]
    words.append(f"{_setting(run, 'model.clusters')} clusters")
    words.append(f"centroids merged by {_setting(run, 'centroids.merge')}")
    share = _setting(run, "centroids.share")
    return words + ([f"shared: {share} only"] if share not in (None, "both", "none") else [])


def _headline(run: Run) -> str:
    values: list[tuple[str, str]] = []
    final, last = run.final, run.rows[-1]
    own = run.scored("site_miou_mean")
    if final is not None:
        values.append((percent(final["miou"]), f"mIoU, round {final['round']}" + split_words(run)))
        values += _last_rounds(run) if is_network(run) else []
        if final.get("accuracy") is not None:
            values.append((percent(final["accuracy"]), "pixel accuracy"))
    elif own:
        row = own[-1]
        values.append(
            (
                percent(row["site_miou_mean"]),
                f"mean mIoU of {len(row.get('site_miou') or {})} sites' own models",
            )
        )
        values.append((percent(row.get("site_miou_std") or 0.0), "spread of those models"))
    else:
        values.append(("no labels", "label-free figures below"))
    if last.get("mean_cosine") is not None:
        values.append((f"{last['mean_cosine']:.3f}", "mean cosine to the centroid"))
    if last.get("loss") is not None and final is None:
        values.append((short(last["loss"]), "loss"))
    if last.get("delta") is not None:
        unit, epsilon = _setting(run, "privacy.unit"), last.get("epsilon")
        shown = "no bound" if epsilon is None else f"{epsilon:.2f}"
        values.append((shown, f"epsilon per {unit}, delta {last['delta']:g}"))
    if _setting(run, "rounds") == 0:
        values.append(("0 rounds", "pretraining alone"))
    else:
        values.append((str(last["round"]), f"of {_setting(run, 'rounds') or '?'} rounds"))
    values.append((str(len(run.site_names())), "sites"))
    sent = [byte_text(run.site_bytes(key)) for key in ("bytes_up", "bytes_down")]
    values.append((sent[0] if sent[0] == sent[1] else " / ".join(sent), "up / down per site and round"))
    values.append((f"{run.minutes:.1f} min", "all rounds" if _setting(run, "rounds") != 0 else "in all"))
    return tiles(values)


def _last_rounds(run: Run) -> list[tuple[str, str]]:
    first, count = find_sets(run)[0], last_count(run)
    values = first.last("miou", count)
    tiles_of_set = []
    if len(values) > 1:
        spread = f"deviation {100 * stdev(values):.1f}"
        tiles_of_set.append((percent(fmean(values)), f"mean of the last {len(values)} rounds, {spread}"))
    if first.clustered:
        tiles_of_set.append((percent(first.final["cluster_miou"]), "mIoU of the clusters' networks"))
    return tiles_of_set


def _pictures(run: Run) -> str:
    if not run.pictures:
        return ""
    newest, first = run.pictures[-1], run.pictures[0]
    blocks = [picture(f"pictures/{newest.name}", f"after round {_number(newest)}")]
    if first != newest:
        earlier = picture(f"pictures/{first.name}", f"after round {_number(first)}")
        blocks.append(
            f"<details><summary>the same images after round {_number(first)}</summary>{earlier}</details>"
        )
    note = (
        "Grey in the truth: not labelled."
        if run.classes is not None
        else "Clusters have no names: nobody gave any."
    )
    return section("What it sees", *blocks, note=note)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))


_CURVES = (
    ("mIoU", "miou", percent, True),
    ("Mean mIoU of the sites' own models", "site_miou_mean", percent, True),
    ("Pixel accuracy", "accuracy", percent, True),
    ("Training loss", "loss", short, False),
    ("Share of pixels whose pseudo-label is believed", "kept", percent, True),
    ("Mean cosine to the centroid", "mean_cosine", lambda v: f"{v:.3f}", False),
    ("Centroid displacement per round", "displacement", short, True),
    ("Evenness of the clusters (entropy / log K)", "entropy", lambda v: f"{v:.3f}", False),
)


def _curves(run: Run) -> str:
    cards = [card for card in (sets_chart(run) if is_network(run) else "",) if card]
    for index, (title, key, label, from_zero) in enumerate(_CURVES):
        curve = run.curve(key)
        if len(curve) < 2 or (cards and key == "miou"):
            continue
        colour = SERIES_COLOURS[index % len(SERIES_COLOURS)]
        tick = percent_tick if label is percent else label
        chart = line_chart([(title, colour, curve)], label=label, tick=tick, from_zero=from_zero)
        cards.append(f"<div><h3>{escape(title)}</h3>{chart}</div>")
    if not cards:
        return ""
    return section("Over the rounds", f'<div class="grid">{"".join(cards)}</div>')


def _clusters(run: Run) -> str:
    rows = [row for row in run.rows if row.get("cluster_share")]
    if not rows:
        return ""
    share: Sequence[float] = rows[-1]["cluster_share"]
    colours = cluster_colours(len(share))
    bars = [(f"cluster {k}", hex_colour(colours[k]), value) for k, value in enumerate(share)]
    return section(
        f"How much each cluster covers, round {rows[-1]['round']}",
        bar_chart(sorted(bars, key=lambda one: -one[2])),
        note="Share of all patches; needs no labels.",
    )


def _settings(run: Run) -> str:
    pairs = [(key, "–" if value == "" else value) for key, value in flatten(run.config).items()]
    return section(
        "Settings", f"<details><summary>all {len(pairs)} settings</summary>{settings_list(pairs)}</details>"
    )


def _footer() -> str:
    return (
        "<footer>Made from config.json, metrics.jsonl and checkpoints/ of this folder. The figures are "
        "those of the last scored round; no round was chosen by its score.</footer>"
    )
