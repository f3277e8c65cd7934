"""Does a report say that clusters collapsed, which ways centroids went, and what correspondences know?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from server.report.clusters import centroid_ways, collapse, correspondence_curves, plane_of
from server.report.data import read_run
from server.report.page import write_report


def run_of(folder: Path, shares: list[float] | None, task: str = "unsupervised") -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"task": task, "name": "x", "rounds": 2}))
    line: dict[str, Any] = {"round": 2, "cluster_share": shares}
    (folder / "metrics.jsonl").write_text(json.dumps({"round": 1}) + "\n" + json.dumps(line) + "\n")
    return folder


def test_a_collapse_is_said_in_numbers(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", [0.9, 0.0995, 0.0005, 0.0])
    assert "collapsed to 2 of 4 clusters" in collapse(read_run(run))
    assert "The run collapsed to 2 of 4 clusters" in write_report(run).read_text()
    assert collapse(read_run(run_of(tmp_path / "b", [0.5, 0.499, 0.001]))) == ""
    assert collapse(read_run(run_of(tmp_path / "c", None))) == ""
    assert collapse(read_run(run_of(tmp_path / "d", [1.0, 0.0], "supervised"))) == ""  # a class may be absent


def test_all_rounds_lie_in_one_plane() -> None:
    first = np.eye(3)
    places, share = plane_of([first, first + 1.0])
    shift = places[1] - places[0]
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-9)
    assert 0 < share <= 1


def test_ways_need_two_rounds_of_one_shape(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", None)
    rows = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    save_file({"centroids": rows}, run / "checkpoints" / "round-0001.safetensors")
    assert centroid_ways(read_run(run)) is None
    (run / "checkpoints" / "round-0002.safetensors").write_bytes(b"cut off")
    assert centroid_ways(read_run(run)) is None
    save_file({"centroids": rows[::-1].copy()}, run / "checkpoints" / "round-0003.safetensors")
    found = centroid_ways(read_run(run))
    assert found is not None and "cluster 3" in found["chart"] and "round 1 to 3" in found["note"]


def test_curves_are_drawn_and_a_broken_file_is_left_out(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", None)
    assert correspondence_curves(read_run(run)) is None
    curve = {
        "name": "codes, within an image",
        "average_precision": 0.5,
        "precision": [1, 0.5],
        "recall": [0.5, 1],
    }
    file = run / "correspondences.json"
    file.write_text(json.dumps({"images": 3, "chance": 0.4, "curves": [curve]}))
    assert "average precision 0.50" in write_report(run).read_text()
    file.write_text("{")
    assert correspondence_curves(read_run(run)) is None
