"""Who took part in a run, what did it cost them, and how did each round go?"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from server.report.charts import percent, presence_strip
from server.report.data import Row, Run
from server.report.html import byte_text, section, table
from server.report.test_sets import find_sets


def sites_section(run: Run) -> str:
    """Return one line a site: when it answered, why it was left out, how many bytes went each way."""
    names = run.site_names()
    own: Mapping[str, float] = next((r["site_miou"] for r in reversed(run.rows) if r.get("site_miou")), {})
    head = ["site", "rounds", "answered", "up / round", "down / round"] + (["own model, mIoU"] if own else [])
    rows, reasons = [], []
    for name in names:
        states = []
        for row in run.rows:
            reason = (row.get("quarantined") or {}).get(name)
            if reason is not None:
                states.append(("bad", f"round {row['round']}: {reason}"))
                reasons.append((name, row["round"], str(reason)))
            elif name in (row.get("sites") or []):
                states.append(("yes", f"round {row['round']}: answered"))
            else:
                states.append(("no", f"round {row['round']}: not asked or no answer"))
        answered = sum(state == "yes" for state, _ in states)
        cells = [
            escape(name),
            presence_strip(states),
            f"{answered} of {len(run.rows)}",
            byte_text(run.site_bytes("bytes_up", name)),
            byte_text(run.site_bytes("bytes_down", name)),
        ]
        rows.append(cells + ([percent(own[name]) if name in own else "–"] if own else []))
    rows.append(
        [
            "all sites, mean",
            "",
            "",
            byte_text(run.site_bytes("bytes_up")),
            byte_text(run.site_bytes("bytes_down")),
        ]
        + ([percent(sum(own.values()) / len(own))] if own else [])
    )
    blocks = [table(head, rows, numbers_from=2, total=True)]
    if reasons:
        items = [
            [escape(name), str(number), f'<span class="bad">{escape(why)}</span>']
            for name, number, why in reasons
        ]
        blocks.append(
            "<h3 style='margin-top:18px'>Left out</h3>"
            + table(["site", "round", "why"], items, numbers_from=9)
        )
    return section(
        "Sites",
        *blocks,
        note="Green: the site's update was used. Red: it was left out of that round. Grey: no answer.",
    )


def rounds_section(run: Run) -> str:
    """Return one line a round with all its figures; a figure that no round has gets no column."""
    sets = find_sets(run)
    scores = [("mIoU" if len(sets) < 2 else f"mIoU, {one.name}", dict(one.curve("miou"))) for one in sets]
    columns: list[tuple[str, list[str]]] = [
        ("round", [str(row["round"]) + _not_counted(row) for row in run.rows]),
        ("sites", [_sites(row) for row in run.rows]),
        ("loss", [_number_or_dash(row.get("loss"), "{:.4f}") for row in run.rows]),
        ("pixels believed", [_share_or_dash(row.get("kept")) for row in run.rows]),
        ("mean cosine", [_number_or_dash(row.get("mean_cosine"), "{:.3f}") for row in run.rows]),
        ("accuracy", [_share_or_dash(row.get("accuracy")) for row in run.rows]),
        *(
            (escape(title), [_share_or_dash(curve.get(float(row["round"]))) for row in run.rows])
            for title, curve in scores
        ),
        ("up, all sites", [byte_text(_total(row.get("bytes_up"))) for row in run.rows]),
        ("down, all sites", [byte_text(_total(row.get("bytes_down"))) for row in run.rows]),
        ("seconds", [_number_or_dash(row.get("seconds"), "{:.1f}") for row in run.rows]),
    ]
    columns = [(title, cells) for title, cells in columns if any(cell != "–" for cell in cells)]
    rows = [list(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    return section("Rounds", table([title for title, _ in columns], rows))


def _not_counted(row: Row) -> str:
    return "" if row.get("counted", True) else ' <span class="bad">not counted</span>'


def _sites(row: Row) -> str:
    left_out = len(row.get("quarantined") or {})
    said = f' <span class="bad">({left_out} left out)</span>' if left_out else ""
    return str(len(row.get("sites") or [])) + said


def _share_or_dash(value: Any) -> str:
    return percent(value) if isinstance(value, int | float) else "–"


def _total(sent: Any) -> float | None:
    if isinstance(sent, Mapping):
        return float(sum(sent.values())) if sent else None
    return float(sent) if isinstance(sent, int | float) else None


def _number_or_dash(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else "–"
