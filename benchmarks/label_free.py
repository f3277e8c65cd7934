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
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from federation import Fit, all_codes, fit, load_fit, open_sites, save_fit
from label_free_sets import SETS, ImageSet, make_shards, shared_keys, site_names, test_shard
from references import color_means, linear_probe, otsu_masks, position_means

from common.clustering.kmeans import farthest_first, spherical_kmeans
from common.data.manifest import Shard
from common.errors import report_user_errors
from common.evaluation.clusters import evaluate_segmenter, refinement, seen_label, segmenting_model
from common.evaluation.metrics import Confusion, MatchRule, match, scores
from common.features.cache import open_features
from common.models.input_size import fitted_to
from common.models.segmenter import Segmenter
from common.seeds import numpy_generator
from common.settings.schema import RunConfig
from common.system.atomic import atomic_write_text
from server.centroids.base import CENTROID_RULES, RuleInput, SiteRows, stack_sites
from server.report.render import mean_and_spread
from server.tasks.base import load_settings

ROOT = Path(__file__).resolve().parents[1]
STARTS, PASSES = 6, 20
RATES = (1e-4, 5e-4, 2.5e-3)
OVER = 40  # clusters that the oracle names, and that label-free joins

_STEPS = {"rounds": 20, "local.steps": 30, "sites.per-round": 2, "local.batch": 8, "model.dim": 70}
_STEPS |= {"centroids.merge": "mean", "centroids.polish-passes": 0}
OBJECTIVES: Mapping[str, dict[str, Any]] = {
    "principal": {"loss.objective": "principal", "model.dim": 256, "rounds": 2, "centroids.starts": 2},
    "spectral": {"loss.objective": "spectral", "rounds": 2},
    "correspondence": _STEPS | {"loss.objective": "correspondence", "loss.correspondence.shift": "auto"},
    "smoothness": _STEPS | {"loss.objective": "smoothness"},
    "modularity": _STEPS | {"loss.objective": "modularity"},
}
# how the merged centroids of the published rules come about: in the raw space, without counts
_RAW = {"centroids.spherical": False, "centroids.weighted": False, "centroids.keep-index": False}
RULES: Mapping[str, dict[str, Any]] = {
    "mean": {"centroids.merge": "mean"},
    "FedCC k-means": _RAW | {"centroids.merge": "fedcc-kmeans"},
    "FedCC k-means, counts": {"centroids.merge": "fedcc-kmeans"},
    "FedCC maximin": _RAW | {"centroids.merge": "fedcc-maximin"},
    "matched": {"centroids.merge": "matched"},
}


@dataclass(frozen=True)
class Place:
    """Where a cell computes: its set, its seed, and the command's options; ``without`` is a site left out."""

    chosen: ImageSet
    seed: int
    asked: argparse.Namespace
    without: int | None = None

    @property
    def folder(self) -> Path:
        """The shards of the set."""
        return Path(self.asked.shards) / self.chosen.name

    def settings(self, keys: Mapping[str, Any]) -> RunConfig:
        """Return the settings of a row."""
        given = {"preset": keys["preset"]} if "preset" in keys else {}
        shared = shared_keys(self.chosen, self.folder, self.asked.weights, self.seed)
        return load_settings(given | shared | dict(keys))

    @property
    def state(self) -> Path:
        """What sites keep between rounds of one fit."""
        return Path(self.asked.out) / f"state-{self.chosen.name}-{os.getpid()}"

    def fit(self, config: RunConfig) -> Fit:
        """Run a federation over the set's sites."""
        numbers = [n for n in range(len(site_names(self.folder))) if n != self.without]
        try:
            return fit(config, open_sites(config, numbers, self.state))
        finally:
            shutil.rmtree(self.state, ignore_errors=True)


Found = dict[str, Any]
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


def count(predictions: Mapping[int, np.ndarray], shard: Shard, config: RunConfig, clusters: int) -> Found:
    """Return counts [clusters, classes] by domain of maps by image."""
    assert shard.classes is not None
    model = fitted_to(config, shard).model
    found: dict[str, Confusion] = {}
    for index, predicted in predictions.items():
        label = seen_label(shard, index, model)
        assert label is not None
        domain = shard.entries[index].domain or ""
        found.setdefault(domain, Confusion(clusters, shard.classes.num_classes)).update(predicted, label)
    return {"domains": {name: one.to_list() for name, one in found.items()}}


def segmented(place: Place, config: RunConfig, groups: Any, fine: bool = True) -> Found:
    """Segment the test images by a model and count; without ``fine`` maps are not refined by colors."""
    shard = test_shard(place.folder)
    fitted = fitted_to(config, shard)
    model = segmenting_model(fitted)
    features = open_features(shard, model, config.cache, place.folder / "cache")
    segmenter = Segmenter.from_groups(groups, features.channels, fitted, model=model)
    found = evaluate_segmenter(
        segmenter,
        features,
        shard,
        model,
        refine=refinement(fitted, model, False) if fine else None,
        keep=range(len(shard)),
    )
    return count(found.predictions, shard, config, segmenter.num_clusters)


def label_free(place: Place) -> Found:
    """Run recipe `label-free`; every start is scored as well, by maps that are not refined."""
    config = place.settings(
        {"preset": "label-free", "rounds": PASSES + 1, "things.each-picture": place.chosen.each_picture}
        | {"refine.stride": 8}
    )
    state = place.fit(config).state
    found = segmented(place, config, state.shared_groups())
    if place.without is None:
        found["starts"] = []
        for start, groups in zip(state.starts["centroids"], state.starts["groups"], strict=True):
            centroids = {"centroids": start, "groups": groups, "centered": state.joined["centered"]}
            part = segmented(place, config, {"head": state.head, "centroids": centroids}, fine=False)
            found["starts"].append(part["domains"])
    return found


def oracle(place: Place) -> Found:
    """Find clusters as `label-free` does, smoothed and fine; the labels name every one of them."""
    keys = {"preset": "label-free", "rounds": PASSES + 1, "codes.center": "none", "centroids.over": 0}
    config = place.settings(keys | {"model.clusters": OVER, "refine.stride": 8})
    return segmented(place, config, place.fit(config).state.shared_groups())


def published(place: Place) -> Found:
    """Run preset `fuss-ref` as it is, on the features of the other rows: 10 rounds of 60 steps."""
    keys = {"preset": "fuss-ref", "rounds": 10, "local.steps": 60, "sites.per-round": 2}
    config = place.settings(keys)
    return segmented(place, config, place.fit(config).state.shared_groups())


def trained(place: Place, objective: str, rate: float) -> tuple[RunConfig, Fit]:
    """Return a trained head with what its sites sent last; rows share it."""
    keys = OBJECTIVES[objective] | ({"local.lr": rate} if rate else {})
    config = place.settings(keys)
    path = Path(place.asked.out) / "heads" / place.chosen.name / f"{objective}-{rate:g}-{place.seed}.npz"
    if not path.is_file():
        save_fit(path, place.fit(config))
    return config, load_fit(path)


_held: dict[tuple[object, ...], np.ndarray] = {}  # of the last head: its rows follow each other


def _codes(place: Place, objective: str, rate: float) -> np.ndarray:
    key = (place.chosen.name, place.seed, objective, rate)
    if key not in _held:
        config, found = trained(place, objective, rate)
        sites = open_sites(config, range(len(site_names(place.folder))), place.state)
        _held.clear()
        _held[key] = all_codes(config, found.state, sites)
    return _held[key]


def clustered(place: Place, objective: str, start: str, rate: float = 0.0) -> Found:
    """Take 20 exact passes from a rule's centroids, or from the most compact of six starts, and score.

    Every one of the six is scored too.
    """
    config, found = trained(place, objective, rate)
    codes = _codes(place, objective, rate)
    clusters = config.model.clusters
    if start in RULES:
        settings = place.settings(OBJECTIVES[objective] | RULES[start]).centroids
        rows = {
            name: SiteRows(update.groups["centroids"]["centroids"], update.groups["centroids"]["counts"])
            for name, update in found.updates.items()
        }
        current = found.state.centroids
        merged = CENTROID_RULES.get(settings.merge)(RuleInput(current, stack_sites(rows, current), settings))
        starts = [merged.centroids]
    elif start == "maximin":
        drawn = numpy_generator(place.seed, "maximin").permutation(len(codes))[:STARTS]
        starts = [codes[farthest_first(codes, clusters, int(first), spherical=True)] for first in drawn]
    else:
        starts = [None] * STARTS
    fits = [
        spherical_kmeans(
            codes,
            clusters,
            1000 * place.seed + number,
            iterations=PASSES,
            tolerance=0.0,
            restarts=1,
            start=one,
        )
        for number, one in enumerate(starts)
    ]
    parts = [
        segmented(place, config, {"head": found.state.head, "centroids": {"centroids": one.centres}})
        for one in fits
    ]
    best = int(np.argmax([one.mean_cosine for one in fits]))
    return parts[best] | {"starts": [part["domains"] for part in parts]}


def reference(place: Place, of: Callable[..., Any]) -> Found:
    """Count what a method without clusters of codes predicts."""
    config, shard = place.settings(OBJECTIVES["principal"]), test_shard(place.folder)
    sites = open_sites(config, range(len(site_names(place.folder))), place.state)
    predictions, outputs = of(config, shard, [site.load_shard() for site in sites.values()], place.seed)
    return count(predictions, shard, config, outputs)


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
    began = time.monotonic()
    found = row.cell(place, rate=rate) if rate else row.cell(place)  # type: ignore[call-arg]
    seconds = time.monotonic() - began
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(found | {"seconds": round(seconds, 1)}))
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
