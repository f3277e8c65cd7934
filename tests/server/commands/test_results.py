"""Tests areas, outlines and COCO annotations of segmented images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from common.data.classes import ClassTable
from common.evaluation.overlay import make_legend
from server.commands.results import Results, outlined, packed_runs, run_lengths


def _unpacked(text: str) -> list[int]:
    """Read COCO's text back, as its maskApi.c does."""
    runs: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            code = ord(text[place]) - 48
            value |= (code & 0x1F) << (5 * shift)
            more = bool(code & 0x20)
            place += 1
            shift += 1
            if not more and code & 0x10:
                value |= -1 << (5 * shift)
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


def _mask(runs: list[int], shape: tuple[int, int]) -> np.ndarray:
    flat = np.concatenate([np.full(run, number % 2 == 1) for number, run in enumerate(runs)])
    return flat.reshape(shape[::-1]).T


def test_run_lengths_come_back() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((9, 13)) < share for share in (0.02, 0.5, 0.98)]
    masks += [np.zeros((4, 5), bool), np.ones((4, 5), bool), np.arange(5000).reshape(50, 100) > 2500]
    for mask in masks:
        runs = run_lengths(mask)
        assert sum(runs) == mask.size and np.array_equal(_mask(runs, mask.shape), mask)
        assert _unpacked(packed_runs(runs)) == runs
    assert run_lengths(np.array([[True, False], [False, False]])) == [0, 1, 3]


def test_areas_and_annotations_of_all_images(tmp_path: Path) -> None:
    legend = make_legend(2, ClassTable(names=("sky", 'a "road", wet')), [0, 1])
    results = Results(legend)
    ids = np.zeros((4, 10), np.uint8)
    ids[3, 2:6] = 1
    results.add("deep/a", "a.jpg", ids)
    results.add("b", "b.jpg", np.ones((2, 5), np.uint8))
    results.write(tmp_path)
    rows = list(csv.DictReader((tmp_path / "areas.csv").open()))
    assert [(row["image"], row["name"], row["pixels"], row["share"]) for row in rows] == [
        ("deep/a", "sky", "36", "0.9"),
        ("deep/a", 'a "road", wet', "4", "0.1"),
        ("b", 'a "road", wet', "10", "1.0"),
    ]
    totals = json.loads((tmp_path / "areas.json").read_text())
    assert totals["images"]["deep/a"] == {"sky": 0.9, 'a "road", wet': 0.1}
    assert totals["classes"]["sky"] == {"pixels": 36, "share": 0.72}
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a.jpg", "b.jpg"]
    road = coco["annotations"][1]
    assert road["bbox"] == [2, 3, 4, 1] and road["area"] == 4 and road["category_id"] == 1
    counts = _unpacked(road["segmentation"]["counts"])
    assert np.array_equal(_mask(counts, (4, 10)), ids == 1)


def test_lines_stand_where_classes_meet_and_nowhere_else() -> None:
    legend = make_legend(2)
    ids = np.zeros((6, 8), np.uint8)
    ids[:, 4:] = 1
    image = np.full((6, 8, 3), 9, np.uint8)
    shown = outlined(image, ids, legend)
    assert (shown[:, 3] == legend.colours[0]).all() and (shown[:, 4] == legend.colours[1]).all()
    assert (shown[:, [0, 1, 2, 5, 6, 7]] == 9).all()
