"""Does the benchmark of masks without labels keep its cells, choose rates as it says, and score by domain?"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.data.manifest import read_shard
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import label_free
import references
from label_free import ROWS, Row, best_rate, cell_path, make_cell, miou, table
from label_free_cells import Place
from label_free_sets import SETS, make_shards, site_names

NUCLEI = replace(SETS["nuclei"], test_every=1)
PERFECT = {"fluo": [[8, 0], [0, 8]], "histo": [[8, 0], [8, 0]]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with one set of two domains, whose bright pixels are the nuclei."""
    root = tmp_path / "data" / "nuclei"
    lines = ["path,domain"]
    for split, domain, number in [
        ("train", "fluo", 2),
        ("train", "histo", 10),
        ("test", "fluo", 1),
        ("train", "fluo", 3),
    ]:
        name = f"{domain}_{number}"
        for kind, suffix in (("images", "jpg"), ("labels", "png")):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
            pixels = np.zeros((32, 48), np.uint8)
            pixels[8:16, 8:24] = 255 if kind == "images" else 1
            Image.fromarray(pixels).save(root / split / kind / f"{name}.{suffix}", quality=100)
        lines.append(f"{split}/images/{name}.jpg,{domain}")
    (root / "splits").mkdir()
    (root / "splits" / "domains.csv").write_text("\n".join(lines))
    return root.parent


def asked(tmp_path: Path, **given: Any) -> argparse.Namespace:
    words = {
        "out": tmp_path / "out",
        "shards": tmp_path / "shards",
        "weights": "random",
        "seeds": 2,
        "sets": ["nuclei"],
    }
    return argparse.Namespace(**(words | given))


def test_a_domain_is_a_site_and_the_test_images_know_theirs(data: Path, tmp_path: Path) -> None:
    make_shards(data, tmp_path / "s", NUCLEI)
    assert site_names(tmp_path / "s") == ["fluo", "histo"]
    fluo, scored = read_shard(tmp_path / "s" / "site-0.jsonl"), read_shard(tmp_path / "s" / "test.jsonl")
    assert [Path(entry.image).name for entry in fluo.entries] == ["fluo_2.jpg", "fluo_3.jpg"]
    assert scored.labelled and [entry.domain for entry in scored.entries] == ["fluo"]


def test_otsu_finds_bright_nuclei_and_a_cell_is_computed_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = asked(tmp_path)
    make_shards(data, given.shards / "nuclei", NUCLEI)
    row = next(row for row in ROWS if row.name.startswith("Otsu"))
    place = Place(NUCLEI, 0, given)
    make_cell(place, row, 0.0)
    found = json.loads(cell_path(given.out, NUCLEI, row, 0, 0.0, None).read_text())
    assert miou(found["domains"], row)[0] > 0.95
    capsys.readouterr()
    make_cell(place, replace(row, cell=lambda place: pytest.fail("it is there")), 0.0)
    assert capsys.readouterr().out == ""


def test_clusters_are_matched_once_on_all_domains() -> None:
    whole, by_domain = miou(PERFECT, Row("x", lambda place: {}))
    assert by_domain == {"fluo": 1.0, "histo": 0.5} and whole == pytest.approx((16 / 24 + 8 / 16) / 2)


def test_the_best_rate_of_seed_0_stands_for_all_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row("x", lambda place: {}, rates=True)
    monkeypatch.setattr(label_free, "ROWS", (row,))
    given = asked(tmp_path)
    cells = {(0, 1e-4): [[5, 3], [3, 5]], (0, 5e-4): [[8, 0], [0, 8]], (1, 5e-4): [[6, 2], [2, 6]]}
    for (seed, rate), counts in cells.items():
        path = cell_path(given.out, NUCLEI, row, seed, rate, None)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"domains": {"fluo": counts}}))
    assert best_rate(given.out, NUCLEI, row) == 5e-4
    text = table(given)
    assert "| x | 80.0 ± 28.3 |" in text  # 100 and 60: the mean and the spread of the two seeds


def test_places_and_colors_make_as_many_clusters_as_there_are_classes(data: Path, tmp_path: Path) -> None:
    given = asked(tmp_path)
    make_shards(data, given.shards / "nuclei", NUCLEI)
    config = Place(NUCLEI, 0, given).settings({"loss.objective": "principal", "model.dim": 8, "rounds": 2})
    shard = read_shard(given.shards / "nuclei" / "test.jsonl")
    sites = [read_shard(given.shards / "nuclei" / f"site-{number}.jsonl") for number in (0, 1)]
    for of in (references.position_means, references.color_means):
        maps, outputs = of(config, shard, sites, 0)
        assert outputs == 2 and set(np.unique(maps[0])) == {0, 1} and maps[0].shape == (32, 48)
