"""What does every page of ours look like: frame, style, tables, tiles?"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

_STYLE = """
:root { color-scheme: light; --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --paper: #fff;
  --back: #f6f7f9; --accent: #1d4eaa; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.55 system-ui, -apple-system,
  "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 34px 26px 70px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 0 0 4px; }
h3 { font-size: 15px; margin: 0 0 8px; }
p { margin: 4px 0 10px; max-width: 78ch; }
.soft { color: var(--soft); }
.lead { color: var(--soft); max-width: none; margin-bottom: 22px; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px;
  padding: 20px 22px; margin: 18px 0; overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 18px 0; }
.tile { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 13px 16px; }
.tile b { display: block; font-size: 23px; line-height: 1.25; font-weight: 650; letter-spacing: -.01em; }
.tile span { display: block; color: var(--soft); font-size: 13px; line-height: 1.35; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 22px 30px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
table.wide { width: 100%; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px; vertical-align: bottom;
  border-bottom: 1px solid var(--line); }
th, td { padding: 6px 20px 6px 0; }
th:last-child, td:last-child { padding-right: 0; }
td { border-bottom: 1px solid #f0f1f4; vertical-align: middle; }
tr:last-child td { border-bottom: 0; }
.n { text-align: right; }
td.n, td:first-child:has(.swatch) { white-space: nowrap; }
tr.total td { font-weight: 650; border-top: 1px solid var(--line); }
.swatch { display: inline-block; width: 14px; height: 14px; border-radius: 4px; margin-right: 9px;
  border: 1px solid rgba(0, 0, 0, .18); vertical-align: -2px; }
.track { display: inline-block; width: 150px; height: 9px; line-height: 9px; border-radius: 3px;
  background: #eef0f3; vertical-align: middle; }
.bar { display: inline-block; height: 9px; border-radius: 3px; background: var(--accent);
  vertical-align: top; }
.best { font-weight: 700; }
.bad { color: #b42318; }
svg.fluid { width: 100%; height: auto; display: block; }
svg text { font-family: inherit; }
img { max-width: 100%; height: auto; border-radius: 8px; border: 1px solid var(--line); display: block; }
details { margin-top: 10px; }
summary { cursor: pointer; color: var(--accent); }
code { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
figure { margin: 0 0 20px; }
figcaption { color: var(--soft); font-size: 13px; margin-bottom: 6px; }
.keys { columns: 3 260px; column-gap: 34px; font-size: 13px; margin-top: 10px; }
.keys div { break-inside: avoid; display: flex; justify-content: space-between; gap: 12px; padding: 2px 0;
  border-bottom: 1px solid #f0f1f4; }
.keys span { color: var(--soft); }
.keys code { text-align: right; overflow-wrap: anywhere; }
.chip { display: inline-block; margin: 0 16px 6px 0; white-space: nowrap; font-size: 14px; }
.row { display: flex; flex-wrap: wrap; gap: 0 18px; }
.row > section { flex: 1 1 600px; }
.row > section:first-child { flex: 1 1 440px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; }
.pair img { width: 100%; }
footer { color: var(--soft); font-size: 13px; margin-top: 26px; }
@media print { body { background: #fff; } section, .tile { break-inside: avoid; } }
"""


def page(title: str, body: Sequence[str]) -> str:
    """Return a whole document: one file, no script, nothing fetched from elsewhere."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def section(title: str, *content: str, note: str = "") -> str:
    """Return a card with a heading and, under it, one sentence that says how to read it."""
    said = f'<p class="soft">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{said}{''.join(content)}</section>"


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Return the headline figures: (value, what it is)."""
    cells = "".join(
        f'<div class="tile"><b>{escape(v)}</b><span>{escape(what)}</span></div>' for v, what in values
    )
    return f'<div class="tiles">{cells}</div>'


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers_from: int = 1,
    total: bool = False,
    wide: bool = True,
) -> str:
    """Return a table. Cells are HTML already; columns from ``numbers_from`` on are numbers, set right.

    ``total`` sets the last row apart.
    """
    style = [' class="n"' if index >= numbers_from else "" for index in range(len(head))]
    out = [f"<table{' class=wide' if wide else ''}><thead><tr>"]
    out += [f"<th{kind}>{name}</th>" for kind, name in zip(style, head, strict=True)]
    out.append("</tr></thead><tbody>")
    for position, row in enumerate(rows):
        out.append('<tr class="total">' if total and position == len(rows) - 1 else "<tr>")
        out += [f"<td{kind}>{cell}</td>" for kind, cell in zip(style, row, strict=True)]
        out.append("</tr>")
    return "".join([*out, "</tbody></table>"])


def swatch(colour: str, name: str) -> str:
    """Return a colour patch with its name."""
    return f'<span class="swatch" style="background:{escape(colour)}"></span>{escape(name)}'


def bar(share: float, colour: str | None = None) -> str:
    """Return a small horizontal bar for a share 0..1."""
    width = 100 * min(1.0, max(0.0, share))
    fill = f";background:{escape(colour)}" if colour else ""
    return f'<span class="track"><span class="bar" style="width:{width:.1f}%{fill}"></span></span>'


def picture(source: str, caption: str = "") -> str:
    """Return a figure; ``source`` is a relative path or a data URI."""
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure>{said}<img loading="lazy" src="{escape(source)}" alt="{escape(caption)}"></figure>'


def embedded(path: Path) -> str:
    """Return a picture file as a data URI."""
    kind = "jpeg" if path.suffix.lower() in (".jpg", ".jpeg") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def settings_list(pairs: Sequence[tuple[str, object]]) -> str:
    """Return settings in columns."""
    rows = "".join(f"<div><span>{escape(str(k))}</span><code>{escape(str(v))}</code></div>" for k, v in pairs)
    return f'<div class="keys">{rows}</div>'


def byte_text(count: float | None) -> str:
    """Return a byte count in decimal units: 815320 -> 0.82 MB, 50788016 -> 50.8 MB."""
    if count is None:
        return "–"
    if count < 1000:
        return f"{count:.0f} B"
    if count < 1e5:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.2f} MB" if count < 1e7 else f"{count / 1e6:.1f} MB"
