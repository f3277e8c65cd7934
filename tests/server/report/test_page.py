"""Reports show what a run recorded, whatever of it is missing, and escape all of it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.checkpoint import Checkpoint, checkpoint_path, save_checkpoint
from common.data.classes import ClassTable
from common.errors import UserError
from common.settings.load import load_config
from server.report.compare import compare, comparison_text
from server.report.data import confusion_shares, read_run
from server.report.methods import group
from server.report.page import contact_sheet, write_pictures, write_report
from server.report.render import byte_text, mean_and_spread

TABLE = ClassTable("toy", ("sky", "road & <path>", "car"), ((1, 2, 3), (40, 50, 60), (200, 100, 0)))
CONFUSION = [[6, 0, 0], [1, 3, 0], [3, 1, 0], [0, 0, 0]]
MAPPING = [0, 1, -1, 2]


def make_run(folder: Path, name: str = "toy", seed: int = 0, labelled: bool = True, **last: Any) -> Path:
    config = load_config({"name": name, "seed": seed, "rounds": 3, "model.clusters": 4, "model.dim": 5})
    run = folder / f"{name}-seed{seed}"
    run.mkdir(parents=True)
    (run / "config.json").write_text(config.to_json())
    rows = []
    for number in (1, 2, 3):
        row: dict[str, Any] = {"round": number, "split": "dev" if labelled else None, "loss": -0.1 * number}
        row |= {"accuracy": None, "miou": None, "miou_all": None, "per_class_iou": None}
        if labelled:
            iou = {"sky": 0.2 + 0.1 * number, "road & <path>": 0.5, "car": None}
            row |= {"accuracy": 0.75, "miou": 0.35 + 0.05 * number, "miou_all": 0.3, "per_class_iou": iou}
        row |= {"mean_cosine": 0.5, "displacement": 0.1, "sites": ["site-2", "site-10"], "quarantined": {}}
        row |= {"bytes_up": {"site-2": 1000, "site-10": 3000}, "bytes_down": {"site-2": 10}, "seconds": 60.0}
        rows.append(row)
    rows[1] |= {"sites": ["site-10"], "quarantined": {"site-2": "head holds <NaN>"}}
    rows[-1] |= {"confusion": CONFUSION if labelled else None, "cluster_share": [0.4, 0.3, 0.2, 0.1]} | last
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table, mapping = (TABLE, MAPPING) if labelled else (None, None)
    saved = Checkpoint(3, {}, np.zeros((4, 5), np.float32), config, table, "", 7, (2, 3), mapping=mapping)
    save_checkpoint(checkpoint_path(run, 3), saved)
    return run


class Page(HTMLParser):
    """Checks nesting, and collects text, references, and what figures say to who cannot see them."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.sources: list[str] = []
        self.alts: list[str] = []
        self.tips: list[str] = []
        self.feed(text)
        assert self.open == []
        self.words = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        found = dict(attributes)
        self.sources += [str(found[key]) for key in ("src", "href") if key in found]
        self.tips += [str(found["title"])] if "title" in found else []
        if tag in ("img", "svg"):
            self.alts.append(str(found.get("alt") or found.get("aria-label")))
        assert tag != "script"

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def test_labelled_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    image, prediction = np.zeros((8, 12, 3), np.uint8), np.zeros((8, 12), np.uint8)
    for number in (1, 3):
        write_pictures(
            run, number, contact_sheet([image], [prediction], [prediction], TABLE, MAPPING, len(MAPPING))
        )
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text())
    assert {"pictures/round-0003.png", "pictures/round-0001.png"} == set(page.sources)
    for words in (
        "50.0 %",
        "mIoU, round 3, dev",
        "road & <path>",
        "not in the labels",
        "Confusion",
        "head holds <NaN>",
        "2 of 3",
        "3.0 kB",
        "3.0 min",
        "centroids.merge",
        "cluster 3",
    ):
        assert words in page.words, words
    assert page.words.index("site-2") < page.words.index("site-10")
    assert {"after round 3", "mIoU over the rounds", "Training loss over the rounds"} <= set(page.alts)
    assert all(alt and alt != "None" for alt in page.alts)
    assert page.tips[:2] == ["round 1: answered", "round 2: head holds <NaN>"]


def test_what_others_chose_is_text_wherever_it_stands(tmp_path: Path) -> None:
    """Names of runs, sites, classes and test sets, and reasons come from other machines."""
    evil = "<script>x</script>\"'><img src=x onerror=y>&amp;$\\frac$"
    own = {"sites": [evil], "quarantined": {"site-2": evil}, "bytes_up": {evil: 5}, "split": evil}
    own |= {"per_class_iou": {evil: 0.5, "b": None}, "confusion": [[3, 0], [1, 2]], "mapping": [0, 1]}
    run = make_run(tmp_path, **own)
    config = json.loads((run / "config.json").read_text()) | {"name": evil}
    (run / "config.json").write_text(json.dumps(config))
    page = Page(write_report(run).read_text())
    assert page.words.count(evil) >= 6, "name, split, class, site, reason"
    assert f"round 3: {evil}" in page.tips and page.sources == []
    compared = Page(compare([run], tmp_path / "out").read_text())
    assert compared.words.count(evil) >= 3 and compared.sources == []


def test_unlabelled_run_shows_label_free_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path, labelled=False)
    sheet = contact_sheet([np.zeros((8, 12, 3), np.uint8)], [np.ones((8, 12), np.uint8)], None, None, None, 2)
    write_pictures(run, 3, sheet)
    page = Page(write_report(run).read_text())
    assert "no labels" in page.words
    assert "Mean cosine to the centroid" in page.words
    assert "How much each cluster covers" in page.words
    assert "mIoU," not in page.words
    assert "Confusion" not in page.words


def test_bare_run_of_one_round_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"round": 1}\n{"round": 2, "lo')
    assert "of ? rounds" in Page(write_report(tmp_path).read_text()).words


def test_own_models_are_never_called_the_miou_of_a_model(tmp_path: Path) -> None:
    own = {"site_miou": {"site-2": 0.2, "site-10": 0.4}, "site_miou_mean": 0.3, "site_miou_std": 0.1}
    none = {
        "miou": None,
        "accuracy": None,
        "per_class_iou": None,
        "confusion": None,
        "site_accuracy_mean": 0.6,
        "site_per_class_iou": {"sky": 0.25, "road & <path>": 0.35, "car": None},
    }
    run = make_run(tmp_path, labelled=False, **own, **none)
    page = Page(write_report(run).read_text())
    assert "mean mIoU of 2 sites' own models" in page.words
    assert "own model, mIoU" in page.words
    assert "mean over the sites' own models" in page.words and "25.0 %" in page.words
    assert "not in the labels" in page.words and "mean over classes" not in page.words
    assert "toy *" in comparison_text([run])
    assert "30.0" in comparison_text([run])


def test_classes_of_own_models_are_compared_as_means_and_marked(tmp_path: Path) -> None:
    own = {"site_miou": {"a": 0.3}, "site_miou_mean": 0.3, "site_miou_std": 0.0, "site_accuracy_mean": 0.6}
    seeds = []
    for seed, sky in ((0, 0.1), (1, 0.3)):
        means = {"site_per_class_iou": {"sky": sky, "road & <path>": 0.5, "car": None}}
        seeds.append(make_run(tmp_path, "alone", seed, labelled=False, **own, **means))
    shared = make_run(tmp_path, "shared")
    compare([*seeds, shared], tmp_path / "out")
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert "| IoU % | shared | alone * |" in markdown
    assert "| sky | 50.0 | 20.0 ± 14.1 |" in markdown and "| car | – | – |" in markdown
    assert "* no whole model is shared: the mean over the sites' own models" in markdown
    assert "alone *" in Page((tmp_path / "out" / "compare.html").read_text()).words
    compare(seeds, tmp_path / "alone")
    assert "| sky | 20.0 ± 14.1 |" in (tmp_path / "alone" / "compare.md").read_text()


def test_confusion_shares_by_hand() -> None:
    shares = confusion_shares(CONFUSION, MAPPING, 3)
    assert shares[0] == pytest.approx([0.6, 0.1, 0.0, 0.3])
    assert shares[1] == pytest.approx([0.0, 0.75, 0.0, 0.25])
    assert shares[2] is None


def test_a_round_that_was_resumed_counts_once_and_the_later_line_holds(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "miou": 0.9, "seconds": 6.0}\n')
    found = read_run(run)
    assert [row.round for row in found.rows] == [1, 2, 3]
    assert found.final is not None and found.final.miou == 0.9
    assert found.minutes == pytest.approx(2.1)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no run directory"),
        ({"config.json": "{}"}, "holds no metrics.jsonl"),
        ({"config.json": "{", "metrics.jsonl": '{"round": 1}'}, "not valid JSON"),
        ({"config.json": "{}", "metrics.jsonl": ""}, "no round yet"),
        ({"config.json": "{}", "metrics.jsonl": 'x\n{"round": 1}\n'}, "line 1"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_seeds_of_one_name_are_one_method(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "good", seed, miou=miou) for seed, miou in enumerate((0.4, 0.5, 0.6))]
    runs.append(make_run(tmp_path, "poor", 0, miou=0.2))
    text = comparison_text(runs)
    lines = [line for line in text.splitlines() if re.match("good|poor", line)]
    assert lines[0].startswith("good")
    assert "50.0 ± 10.0" in lines[0]
    assert lines[1].split()[:3] == ["poor", "1", "20.0"]
    assert "2.0 kB" in lines[0]
    assert "10 B" in lines[0]
    path = compare(runs, tmp_path / "out")
    page = Page(path.read_text())
    assert "50.0 ± 10.0" in page.words
    assert "road & <path>" in page.words
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert "| good | 3 | 50.0 ± 10.0 |" in markdown
    assert "| sky | 50.0 ± 0.0 | 50.0 |" in markdown


def test_the_last_round_counts_not_the_best(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "falling", 0, miou=0.1)]
    assert group([read_run(run) for run in runs])[0].finals("miou") == [0.1]


def test_a_seed_given_twice_and_nothing_at_all_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(UserError, match="Seed 0 of 'toy' was given twice"):
        compare([run, run], tmp_path / "out")
    with pytest.raises(UserError, match="No run directory"):
        compare([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_seeds_that_differ_in_more_are_named(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "toy", seed) for seed in (0, 1)]
    changed = json.loads((runs[1] / "config.json").read_text())
    changed["local"]["lr"] = 0.125
    (runs[1] / "config.json").write_text(json.dumps(changed))
    assert "differ in local.lr as well" in comparison_text(runs)


def test_a_setting_that_an_older_release_did_not_have_is_no_difference(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "toy", seed) for seed in (0, 1)]
    older = json.loads((runs[0] / "config.json").read_text())
    del older["privacy"], older["loss"]["spectral"]
    (runs[0] / "config.json").write_text(json.dumps(older))
    assert "differ in" not in comparison_text(runs)
    newer = json.loads((runs[1] / "config.json").read_text())
    newer["loss"]["spectral"]["whiten"] = 0.5
    (runs[1] / "config.json").write_text(json.dumps(newer))
    assert "differ in loss.spectral.whiten as well" in comparison_text(runs)


def test_spread_and_bytes_by_hand() -> None:
    assert mean_and_spread([0.1, 0.2, 0.3]) == "20.0 ± 10.0"
    assert mean_and_spread([0.1234]) == "12.3"
    assert mean_and_spread([]) == "–"
    assert [byte_text(count) for count in (None, 12, 4321, 815320)] == ["–", "12 B", "4.3 kB", "0.82 MB"]
    assert byte_text(50_788_016) == "50.8 MB"


def test_contact_sheet_columns_and_colours(tmp_path: Path) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    prediction = np.full((40, 60), 3, np.uint8)
    truth = np.full((40, 60), 255, np.uint8)
    sheet = contact_sheet([image], [prediction], [truth], TABLE, MAPPING, len(MAPPING))
    pixels = sheet.reshape(-1, 3)
    assert (pixels == np.array([148, 74, 0])).all(
        axis=1
    ).sum() > 10_000  # 0.74 x the colour of 'car' on black
    two = contact_sheet([image, image], [prediction, prediction], None, None, None, 4)
    assert two.shape[1] < sheet.shape[1]
    assert two.shape[0] > sheet.shape[0]
    with pytest.raises(ValueError, match="expected as many"):
        contact_sheet([image], [], None, None, None, 4)
    path = write_pictures(tmp_path, 7, two)
    assert path == tmp_path / "pictures" / "round-0007.png"
    assert Image.open(path).width == two.shape[1]
