"""Which method finds masks without labels? One table over CamVid, nuclei, steel and retina.

    python benchmarks/label_free.py --data ../shared/data --seeds 3          # all of it: under 3 hours on two cores
    python benchmarks/label_free.py --data ../shared/data --sets camvid retina &  # or two processes, a core each
    python benchmarks/label_free.py --data ../shared/data --sets nuclei steel
    python benchmarks/label_free.py --show                                   # runs nothing

All rows see the same frozen features. A row with a head trains it by at least 600 steps, at the best of three
learning rates: chosen by its labelled score on seed 0, in its favor. Rules of one objective share its trained heads.
Every row starts exact k-means from its rule's centroids, or from the most compact of six starts, and takes the same
20 passes. Finished cells lie in OUT, so that the command goes on after a stop. Sites train in this process.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from label_free_cells import OVER, RULES, Found, Place, clustered, label_free, oracle, published, reference
from label_free_sets import SETS, ImageSet, make_shards, site_names
from references import color_means, linear_probe, otsu_masks, position_means

from common.errors import report_user_errors
from common.evaluation.metrics import Confusion, MatchRule, match, scores
from common.system.atomic import atomic_write_text
from server.report.render import mean_and_spread

ROOT = Path(__file__).resolve().parents[1]
RATES = (1e-4, 5e-4, 2.5e-3)
Cell = Callable[[Place], Found]


@dataclass(frozen=True)
class Row:
    """A line of the table: how its cells are computed, and how clusters get their names."""

    name: str
    cell: Cell
    matching: MatchRule = "hungarian"
    rates: bool = False
    fits: Callable[[ImageSet], bool] = lambda chosen: True
    once: bool = False
    leaves_out: bool = False


def _rows() -> Iterator[Row]:
    binary = {"fits": lambda chosen: chosen.classes.num_classes == 2, "once": True}
    yield Row("position in the image", partial(reference, of=position_means), once=True)
    yield Row("k-means of colors", partial(reference, of=color_means))
    yield Row("Otsu's threshold of each image", partial(reference, of=otsu_masks), **binary)  # type: ignore[arg-type]
    yield Row("label-free", label_free, leaves_out=True)
    for objective in ("principal", "spectral"):
        for start in ("k-means++", "maximin"):
            yield Row(f"{objective}, {start}", partial(clustered, objective=objective, start=start))
    for objective in ("correspondence", "smoothness", "modularity"):
        for start in ("k-means++", "maximin", *(RULES if objective == "correspondence" else ("mean",))):
            cell = partial(clustered, objective=objective, start=start)
            yield Row(f"{objective}, {start}", cell, rates=True)
    yield Row("fuss-ref, as published", published)
    yield Row("with labels: linear probe of the features", partial(reference, of=linear_probe), "identity")
    yield Row(f"with labels: names of {OVER} clusters", oracle, "many-to-one")


ROWS = tuple(_rows())


def cell_path(out: Path, chosen: ImageSet, row: Row, seed: int, rate: float, without: int | None) -> Path:
    """Return the file of a cell."""
    word = "".join(letter if letter.isalnum() else "-" for letter in row.name)
    more = (f"-{rate:g}" if rate else "") + (f"-without{without}" if without is not None else "")
    return out / "cells" / chosen.name / f"{word}{more}-seed{seed}.json"


def miou(domains: Mapping[str, Any], row: Row) -> tuple[float, dict[str, float]]:
    """Return mIoU of the whole set, and by domain: clusters are matched once, on the whole set."""
    parts = {name: Confusion.from_list(rows) for name, rows in domains.items()}
    total = Confusion.from_list(sum(part.matrix for part in parts.values()).tolist())  # type: ignore[union-attr]
    mapping = match(total, row.matching)
    return scores(total, mapping).miou, {name: scores(part, mapping).miou for name, part in parts.items()}


def best_rate(out: Path, chosen: ImageSet, row: Row) -> float:
    """Return the learning rate of the highest score on seed 0."""
    found = {}
    for rate in RATES:
        path = cell_path(out, chosen, row, 0, rate, None)
        if path.is_file():
            found[rate] = miou(json.loads(path.read_text())["domains"], row)[0]
    return max(found, key=lambda rate: found[rate]) if found else 0.0


def make_cell(place: Place, row: Row, rate: float) -> None:
    """Compute a cell where it is missing."""
    path = cell_path(Path(place.asked.out), place.chosen, row, place.seed, rate, place.without)
    if path.is_file():
        return
    began, computed = time.monotonic(), time.process_time()
    found = row.cell(place, rate=rate) if rate else row.cell(place)  # type: ignore[call-arg]
    seconds = time.monotonic() - began
    took = {"seconds": round(seconds, 1), "cpu_seconds": round(time.process_time() - computed, 1)}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(found | took))
    print(
        f"{path.parent.name} {path.stem}: {100 * miou(found['domains'], row)[0]:.1f} in {seconds:.0f} s",
        flush=True,
    )


def run(asked: argparse.Namespace) -> None:
    """Make the missing cells, seed by seed, all rates on seed 0; then with every site left out."""
    out = Path(asked.out)
    wanted = [row for row in ROWS if not asked.rows or any(part in row.name for part in asked.rows)]
    for name in asked.sets:
        make_shards(Path(asked.data), Path(asked.shards) / name, SETS[name])
    for seed in range(asked.seeds):
        for row in wanted:
            for name in asked.sets:
                chosen = SETS[name]
                if not row.fits(chosen) or (row.once and seed):
                    continue
                rates = (0.0,) if not row.rates else RATES if seed == 0 else (best_rate(out, chosen, row),)
                for rate in rates:
                    make_cell(Place(chosen, seed, asked), row, rate)
        for row in wanted if seed == 0 else ():
            for name in asked.sets if row.leaves_out else ():
                for site in range(len(site_names(Path(asked.shards) / name))):
                    make_cell(replace(Place(SETS[name], 0, asked), without=site), row, 0.0)


def table(asked: argparse.Namespace) -> str:
    """Return what is finished, in Markdown."""
    out = Path(asked.out)
    head = ["", *(f"{name}" for name in asked.sets)]
    lines = [head, ["---", *["---:"] * len(asked.sets)]]
    notes: list[str] = []
    for row in ROWS:
        cells = [row.name]
        for name in asked.sets:
            chosen = SETS[name]
            rate = best_rate(out, chosen, row) if row.rates else 0.0
            found = [
                json.loads(path.read_text())
                for seed in range(asked.seeds)
                if (path := cell_path(out, chosen, row, seed, rate, None)).is_file()
            ]
            scored = [miou(one["domains"], row) for one in found]
            text = mean_and_spread([score for score, _ in scored])
            starts = [100 * miou(part, row)[0] for one in found for part in one.get("starts", ())]
            if len(starts) > 1:
                text += f" ({min(starts):.1f} to {max(starts):.1f})"
            cells.append(text)
            if len(scored[0][1] if scored else ()) > 1:
                by = ", ".join(f"{key} {100 * fmean(s[1][key] for s in scored):.1f}" for key in scored[0][1])
                notes.append(f"* {name}, {row.name}: {by}")
        lines.append(cells)
    text = (
        "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\nBy domain:\n\n" + "\n".join(notes)
    )
    return text + "\n\n" + left_out(asked)


def left_out(asked: argparse.Namespace) -> str:
    """Return the scores with each one site left out, by the site's name."""
    lines = []
    for row in ROWS if asked.sets else ():
        for name in asked.sets if row.leaves_out else ():
            parts = []
            for number, site in enumerate(site_names(Path(asked.shards) / name)):
                path = cell_path(Path(asked.out), SETS[name], row, 0, 0.0, number)
                if path.is_file():
                    parts.append(f"{site} {100 * miou(json.loads(path.read_text())['domains'], row)[0]:.1f}")
            lines += [f"* {name}, {row.name} without {', '.join(parts)}"] if parts else []
    return "With one site left out, seed 0:\n\n" + "\n".join(lines) + "\n" if lines else ""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="folder of the four sets")
    parser.add_argument(
        "--shards", type=Path, default=ROOT / "shards/label-free", help="where their shards go"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs/label-free", help="where finished cells go")
    parser.add_argument("--weights", default=str(ROOT / "../shared/weights/clip_vitb16_openai.safetensors"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=list(SETS))
    parser.add_argument("--rows", nargs="+", metavar="PART", help="rows whose names hold one of these")
    parser.add_argument("--show", action="store_true", help="run nothing, show what is finished")
    return parser.parse_args(words)


@report_user_errors
def main() -> int:
    """Make what is missing, then print the table."""
    asked = parse()
    if not asked.show:
        run(asked)
    text = table(asked)
    print(text)
    if not asked.show:
        atomic_write_text(Path(asked.out) / "table.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
