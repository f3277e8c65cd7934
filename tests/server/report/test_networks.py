"""Reports show test sets side by side, clusters beside the shared network, and no best round."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.checkpoint import Checkpoint, checkpoint_path, save_checkpoint
from common.data.classes import load_table
from common.settings.load import load_config
from common.styles.bank import STYLES_PICTURE
from common.styles.clusters import CLUSTERS_FILE
from server.report.compare import compare, comparison_text
from server.report.data import class_shares, rarest, read_run, trained_shares
from server.report.methods import comparable, group, pixel_shares, rare_table
from server.report.page import write_report
from tests.server.report.test_page import Page

SYNTHETIC = load_table("synthetic")

PIXELS = np.array([40_000, 30_000, 20_000, 5_000, 3_000, 1_500, 400, 100])
"""True pixels of the eight classes."""


def record(strength: float, clusters: float | None = None, domains: bool = False) -> dict[str, Any]:
    """A test set's record in which frequent classes are found better."""

    def by_class(scale: float) -> dict[str, float | None]:
        values = scale * (0.2 + 0.8 * np.log(PIXELS) / np.log(PIXELS[0]))
        found: dict[str, float | None] = {n: float(v) for n, v in zip(SYNTHETIC.names, values, strict=True)}
        return found

    shown = by_class(strength)
    made: dict[str, Any] = {"accuracy": 0.5 + strength / 2, "images": 12, "per_class_iou": shown}
    made["miou"] = float(np.mean([v for v in shown.values() if v is not None]))
    if clusters is not None:
        own = by_class(clusters)
        made["cluster_per_class_iou"] = own
        made["cluster_miou"] = float(np.mean([v for v in own.values() if v is not None]))
    if domains:
        made |= {"domain_miou": {"dusk & <b>": 0.2, "day": 0.4}, "domain_miou_mean": 0.3}
        made["domain_miou_std"] = 0.1
        made |= {"site_miou": {"site-0": 0.3, "site-10": 0.7}, "site_miou_mean": 0.5, "site_miou_std": 0.2}
    return made


def make_network_run(
    folder: Path,
    name: str = "net",
    seed: int = 0,
    strengths: tuple[float, ...] = (0.2, 0.9, 0.4, 0.5),
    clusters: float | None = None,
    sets: tuple[str, ...] = ("ts1", "ts2"),
    **settings: Any,
) -> Path:
    """Write the records of a run of as many rounds as there are strengths."""
    given = {"name": name, "seed": seed, "task": "adaptation", "rounds": len(strengths), "eval.last": 2}
    config = load_config(given, settings)
    run = folder / f"{name}-seed{seed}"
    (run / "pictures").mkdir(parents=True)
    (run / "config.json").write_text(config.to_json())
    lines = []
    for number, strength in enumerate(strengths, start=1):
        own = None if clusters is None else clusters * strength
        found = {one: record(strength / (i + 1), own, i > 0) for i, one in enumerate(sets)}
        first = found[sets[0]]
        line: dict[str, Any] = {
            "round": number,
            "split": ",".join(sets),
            "sets": found,
            "miou_all": first["miou"],
        }
        line |= {key: first[key] for key in ("accuracy", "miou", "per_class_iou")}
        line |= {"loss": 2 / number, "kept": 0.5 + 0.05 * number, "sites": ["a", "b"], "quarantined": {}}
        line |= {"bytes_up": {"a": 50e6, "b": 50e6}, "bytes_down": {"a": 50e6, "b": 50e6}, "seconds": 90.0}
        line |= {"confusion": np.diag(PIXELS).tolist(), "mapping": list(range(8)), "mean_cosine": None}
        lines.append(json.dumps(line) + "\n")
    (run / "metrics.jsonl").write_text("".join(lines))
    saved = Checkpoint(len(strengths), {}, np.zeros((0, 0), np.float32), config, SYNTHETIC, "", 8, (64, 96))
    save_checkpoint(checkpoint_path(run, len(strengths)), saved)
    return run


def write_clusters(run: Path, **changes: Any) -> None:
    found = {"k": 2, "clusters": [["a"], ["b <1>"]], "silhouettes": {"2": 0.4, "3": -0.1}, "note": ""}
    (run / CLUSTERS_FILE).write_text(json.dumps(found | {"purity": 0.5} | changes))


def test_page_of_a_run_with_sets_clusters_and_styles(tmp_path: Path) -> None:
    run = make_network_run(tmp_path, clusters=1.1)
    write_clusters(run)
    Image.new("RGB", (40, 20)).save(run / "pictures" / STYLES_PICTURE)
    page = Page(write_report(run).read_text())
    final, before = record(0.5)["miou"], record(0.4)["miou"]
    mean, deviation = (final + before) / 2, abs(final - before) / 2**0.5
    for words in (
        f"{100 * final:.1f} % mIoU, round 4, ts1",
        f"{100 * mean:.1f} % mean of the last 2 rounds, deviation {100 * deviation:.1f}",
        f"{100 * mean:.1f} ± {100 * deviation:.1f}",
        "mIoU of the clusters' networks",
        "30.0 ± 10.0",
        "dusk & <b>",
        "mIoU % by site",
        "50.0 ± 20.0",
        "ts2 by site",
        "site-10",
        "ts2, clusters",
        "Confusion, ts1",
        "Share of pixels whose pseudo-label is believed",
        "b <1>",
        "purity 0.50",
        "-0.100",
        "sites' styles",
        "pixels believed",
        "teacher: never",
    ):
        assert words in page.words, words
    assert page.sources == [f"pictures/{STYLES_PICTURE}"]
    for words in ("mean cosine", "Centroid", "Clusters were matched", "centroids merged by"):
        assert words not in page.words, words
    assert f"{100 * record(0.9)['miou']:.1f} ±" not in page.words


def test_all_sheets_of_styles_are_shown_in_order(tmp_path: Path) -> None:
    run = make_network_run(tmp_path)
    sheets = [STYLES_PICTURE, *(f"styles-{number}.png" for number in range(2, 12))]
    for name in sheets:
        Image.new("RGB", (40, 20)).save(run / "pictures" / name)
    assert Page(write_report(run).read_text()).sources == [f"pictures/{name}" for name in sheets]


def test_the_best_round_is_not_the_result(tmp_path: Path) -> None:
    run = read_run(make_network_run(tmp_path, strengths=(0.9, 0.1, 0.2)))
    first = run.sets[0]
    assert run.last_count == 2
    assert first.last("miou", 2) == pytest.approx([record(0.1)["miou"], record(0.2)["miou"]])
    assert first.last("miou", 9)[0] == pytest.approx(record(0.9)["miou"])
    assert [one.name for one in run.sets] == ["ts1", "ts2"]


def test_pretraining_alone_has_a_page_and_a_row(tmp_path: Path) -> None:
    run = make_network_run(tmp_path, "pre", strengths=(0.4,), rounds=0)
    line = json.loads((run / "metrics.jsonl").read_text())
    line |= {"round": 0, "loss": None, "bytes_up": {}, "bytes_down": {}}
    del line["kept"]
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    page = Page(write_report(run).read_text())
    assert "0 rounds pretraining alone" in page.words
    assert "up, all sites" not in page.words
    other = make_network_run(tmp_path, "adapt")
    text = comparison_text([run, other])
    row = next(line for line in text.splitlines() if line.startswith("pre "))
    assert row.split()[-4:] == ["0", "–", "–", "1.5"]


def test_sites_counted_by_themselves_have_one_set(tmp_path: Path) -> None:
    run = make_network_run(tmp_path, sets=("one",))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["sets"]
        line["split"] = "sites"
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [one.name for one in read_run(run).sets] == ["sites"]
    assert "mIoU, round 4, sites" in Page(write_report(run).read_text()).words


def test_own_networks_and_unscored_rounds_still_have_a_page(tmp_path: Path) -> None:
    run = make_network_run(tmp_path, "alone", strengths=(0.3, 0.4), **{"centroids.share": "none"})
    empty = {"miou": None, "accuracy": None, "per_class_iou": None, "confusion": None}
    lines = [json.loads(line) | empty for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["sets"]
    lines[1] |= {"site_miou": {"a": 0.2, "b": 0.4}, "site_miou_mean": 0.3, "site_miou_std": 0.1}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_report(run).read_text())
    assert "mean mIoU of 2 sites' own models" in page.words
    assert "Test sets" not in page.words
    assert "alone *" in comparison_text([run, make_network_run(tmp_path, "shared")])


@pytest.mark.parametrize("text", ["", "[]", '{"clusters": 3}', '{"clusters": [["a"]], "silhouettes": 1}'])
def test_broken_clusters_are_said_to_be_broken(tmp_path: Path, text: str) -> None:
    run = make_network_run(tmp_path)
    (run / CLUSTERS_FILE).write_text(text)
    assert "clusters.json cannot be read" in Page(write_report(run).read_text()).words


def test_note_and_missing_purity(tmp_path: Path) -> None:
    run = make_network_run(tmp_path)
    write_clusters(run, purity=None, silhouettes={}, clusters=[["a", "b"]], note="2 sites: one cluster.")
    page = Page(write_report(run).read_text())
    assert "1 cluster. 2 sites: one cluster." in page.words
    assert "purity" not in page.words


def test_recipes_side_by_side(tmp_path: Path) -> None:
    runs = [make_network_run(tmp_path, "plain", seed, (0.2, 0.4 + 0.1 * seed)) for seed in (0, 1)]
    runs += [make_network_run(tmp_path, "clustered", 0, (0.3, 0.6), clusters=1.2)]
    path = compare(runs, tmp_path / "out")
    markdown = (tmp_path / "out" / "compare.md").read_text()
    head = [cell.strip() for cell in markdown.splitlines()[0].strip("|").split("|")]
    rows = {
        cells[0]: dict(zip(head, cells, strict=True))
        for line in markdown.splitlines()[2:4]
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    first, second = record(0.4)["miou"], record(0.5)["miou"]
    spread = abs(second - first) / 2**0.5
    assert rows["plain"]["ts1 mIoU %"] == f"{50 * (first + second):.1f} ± {100 * spread:.1f}"
    last = [(record(0.2)["miou"] + value) / 2 for value in (first, second)]
    assert rows["plain"]["ts1 last %"].startswith(f"{50 * sum(last):.1f} ± ")
    assert rows["plain"]["ts2 clusters %"] == "–"
    assert rows["clustered"]["ts1 clusters %"] == f"{100 * record(0.72)['miou']:.1f}"
    assert rows["clustered"]["up / site+round"] == "50.0 MB"
    page = Page(path.read_text())
    for words in (
        "Rare classes",
        "5 rarest classes",
        "mIoU, ts2",
        "Last: the mean mIoU over the last 2 scored",
    ):
        assert words in page.words, words
    assert "ts1, clusters:" in markdown
    assert "5 rarest classes" in comparison_text(runs)


def test_shares_of_pixels_and_rarest_by_hand(tmp_path: Path) -> None:
    run = make_network_run(tmp_path)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    counts = np.zeros((8, 8), dtype=int)
    counts[0, :3] = (2, 1, 3)  # everything predicted as class 0: columns are the truth
    counts[5, 2] = 4
    lines[-1]["confusion"] = counts.tolist()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shares = class_shares(read_run(run))
    names = SYNTHETIC.names
    assert shares == {names[0]: 0.2, names[1]: 0.1, names[2]: 0.7}
    assert rarest(shares, 2) == [names[1], names[0]]
    assert rarest({"b": 0.5, "a": 0.5}, 1) == ["a"]


def test_rare_classes_are_means_over_classes_with_a_spread_over_seeds(tmp_path: Path) -> None:
    runs = [read_run(make_network_run(tmp_path, "x", seed, (0.4 + 0.2 * seed,))) for seed in (0, 1)]
    methods = group(runs)
    assert comparable(methods) == methods
    table = rare_table(methods)
    assert table is not None
    _, ((name, rare, other),) = table
    means = [
        np.mean([(run.rows[-1].per_class_iou or {})[one] for one in SYNTHETIC.names[3:]]) for run in runs
    ]  # the table's classes come with falling frequency
    assert name == "x"
    assert rare == f"{100 * np.mean(means):.1f} ± {100 * np.std(means, ddof=1):.1f}"
    assert other > rare


def test_a_class_is_rare_by_the_labels_that_sites_train_on(tmp_path: Path) -> None:
    """The shards have the last class most often; another folder of shards is other pixels."""
    shards = tmp_path / "shards"
    shards.mkdir()
    pixels = {"site-0": [1, 2, 3, 4, 5, 6, 7, 0], "site-1": [0, 0, 0, 0, 0, 0, 0, 72]}
    content: dict[str, Any] = {"dataset": "d", "rule": "iid", "seed": 0, "root": ".", "sites": {"site-0": 1}}
    content |= {"classes": SYNTHETIC.to_json(), "histogram": pixels}
    (shards / "partition.json").write_text(json.dumps(content))
    names, run = SYNTHETIC.names, read_run(make_network_run(tmp_path, "x"))
    task = {"task": "supervised", "simulation": {"shards": str(shards)}}
    trained = replace(run, config=run.config | task)
    assert trained_shares(trained) == pytest.approx(
        {n: (*range(1, 8), 72)[i] / 100 for i, n in enumerate(names)}
    )
    assert trained_shares(replace(trained, config=trained.config | {"task": "adaptation"})) == {}
    scored, best = pixel_shares(group([trained])[0])
    assert rarest(best) == list(names[:5]) and rarest(scored) != rarest(best)
    for broken in ({"site-0": [1, 2], "site-1": [3]}, {"site-0": 3}, {"site-0": ["x"] * 8}, [1, 2], {}):
        (shards / "partition.json").write_text(json.dumps(content | {"histogram": broken}))
        assert trained_shares(trained) == {}
    (shards / "partition.json").unlink()
    assert trained_shares(trained) == {}
    assert pixel_shares(group([trained])[0]) == (class_shares(run), {})


def test_recipes_scored_on_other_pixels_are_not_drawn_together(tmp_path: Path) -> None:
    one, two = make_network_run(tmp_path, "one"), make_network_run(tmp_path, "two")
    lines = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["confusion"] = np.diag(PIXELS[::-1]).tolist()
    (two / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    methods = group([read_run(one), read_run(two)])
    assert comparable(methods) == methods[:1]
    page = Page(compare([one, two], tmp_path / "out").read_text())
    assert f"of other pixels: {methods[1].name}" in page.words
