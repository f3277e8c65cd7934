"""Run directories and checkpoints of version 0.1.0 still load, score, segment, report and resume.

``tests/fixtures/runs/README.md`` says how they were made. A key, file or array name that changes without a way to
read the old one fails here.
"""

from __future__ import annotations

import json
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.checkpoint import load_checkpoint
from common.settings.load import from_record as read_record
from common.settings.load import load_config, migrated
from common.settings.schema import RunConfig
from common.settings.section import flatten
from server.loop.run import run
from tests.support.federation import local_grid
from tests.support.workshop import run_command

pytestmark = pytest.mark.slow

FIXTURES = Path(__file__).parent / "fixtures" / "runs"
NAMES = ("default", "fuss-ref", "own-centroids", "local-only", "noisy", "supervised", "adaptation")
SITES = 4
ROOT = "/old-runs"
"""What the folder of all runs is called in their files."""

IOU = {"rel": 1e-3, "abs": 2e-3}
"""One pixel may change sides on another kind of CPU, which is 0.002 of a class of 500 pixels."""
PIXELS = 1e-3
"""Share of pixels whose label may change."""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, unpacked where their paths lead; read-only."""
    folder = tmp_path_factory.mktemp("old")
    for name in ("shared", "pretraining", *NAMES):
        unpack(name, folder)
    return folder


def unpack(name: str, folder: Path) -> Path:
    """Unpack one archive and let its texts name ``folder``."""
    with tarfile.open(FIXTURES / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
        members = [folder / member.name for member in archive if member.isfile()]
    for path in members:
        if path.suffix in (".json", ".jsonl", ".toml", ".txt"):
            path.write_text(path.read_text().replace(ROOT, str(folder)))
    return folder / "runs" / name


def expected(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FIXTURES / "expected" / f"{name}.json").read_text())
    return found


def settings(folder: Path, name: str, **changes: Any) -> RunConfig:
    """Read all settings of a run as its version printed them, and change some."""
    given = flatten(tomllib.loads((folder / "settings" / f"{name}.toml").read_text()))
    return load_config(given, changes)


def assert_alike(found: Any, wanted: Any, where: str) -> None:
    """Compare records: every old key is there, figures within `IOU`, counts of pixels within `PIXELS`."""
    if isinstance(wanted, dict):
        assert wanted.keys() <= found.keys(), where
        for key, value in wanted.items():
            assert_alike(found[key], value, f"{where}.{key}")
    elif where.endswith("confusion") and wanted is not None:
        counts = np.array(wanted)
        assert np.abs(np.array(found) - counts).sum() <= 2 * PIXELS * counts.sum(), where
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, **IOU), where
    else:
        assert found == wanted, where


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_old_version(old: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "record.json"
    for case in expected(name)["evaluate"]:
        words = ["--checkpoint", old / "runs" / name, "--shard", old / "shards" / "eval.jsonl", "--json", out]
        assert run_command(["server", "evaluate", *words, *case["options"]]) == 0
        assert_alike(json.loads(out.read_text()), case["record"], f"{name} {case['options']}")


@pytest.mark.parametrize("name", NAMES)
def test_label_maps_are_those_of_the_old_version(old: Path, tmp_path: Path, name: str) -> None:
    case = expected(name)["segment"]
    words = ["--checkpoint", old / "runs" / name, "--out", tmp_path, *case["options"]]
    assert run_command(["server", "segment", *words, old / "shards/data/images/unseen"]) == 0
    maps = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "labels").glob("*.png"))]
    assert len(maps) == case["pictures"] and (tmp_path / "index.html").is_file()
    wanted = np.asarray(Image.open(FIXTURES / "expected" / f"{name}.png"))
    assert (np.concatenate(maps) != wanted).mean() <= PIXELS
    assert json.loads((tmp_path / "legend.json").read_text()) == case["legend"]


def test_reports_of_one_run_and_of_all(old: Path, tmp_path: Path) -> None:
    runs = [old / "runs" / name for name in NAMES]
    for folder in runs:
        assert run_command(["server", "report", folder]) == 0
        page = (folder / "report.html").read_text()
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        figure = last["miou"] if last["miou"] is not None else last["site_miou_mean"]
        for shown in (f"old-{folder.name}", f"{100 * figure:.1f}", "pavement", "site-0"):
            assert shown in page, (folder.name, shown)
    assert run_command(["server", "report", *runs, "--out", tmp_path]) == 0
    page = next(tmp_path.glob("*.html")).read_text()
    assert all(f"old-{name}" in page for name in NAMES)


@pytest.mark.parametrize("name", [*NAMES, "pretraining"])
def test_every_old_setting_is_read(old: Path, name: str) -> None:
    """Recipe, ``config.json`` and checkpoint of a run say the same under today's keys."""
    from_recipe = settings(old, name).to_flat()
    record = json.loads((old / "runs" / name / "config.json").read_text())
    from_record = read_record(record).to_flat()
    places = {key for key in from_recipe if key.startswith("simulation.")} | {"run-dir", "sites.expected"}
    for key in from_recipe.keys() - places:
        assert from_recipe[key] == from_record[key], key
    given = migrated(flatten(record))
    for key in given.keys() & from_record.keys():
        assert from_record[key] == given[key], key
    if name in NAMES:
        assert load_checkpoint(old / "runs" / name).config.to_flat() == from_record


@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        ("default", 4),
        ("own-centroids", 3),
        ("local-only", 3),
        ("noisy", 4),
        ("supervised", 3),
        ("adaptation", 3),
    ],
)
def test_a_run_goes_on_for_one_more_round(old: Path, tmp_path: Path, name: str, rounds: int) -> None:
    folder = unpack(name, tmp_path)
    before = load_checkpoint(folder)
    goes_on(old, name, folder, rounds)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, rounds + 1))
    last, after = lines[-1], load_checkpoint(folder)
    assert last["counted"] and last["quarantined"] == {}
    assert after.arrays().keys() >= before.arrays().keys()  # nothing that the server remembered is lost
    score = last["miou"] if last["miou"] is not None else last["site_miou_mean"]
    assert score > 0.03  # of one that began anew: below
    if "epsilon" in last:
        assert last["epsilon"] > lines[-2]["epsilon"]  # what was given away before counts


def test_a_stopped_pretraining_goes_on(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = unpack("pretraining", tmp_path)
    goes_on(old, "pretraining", folder, 0)
    assert "after step 6" in capsys.readouterr().out
    assert load_checkpoint(folder).round == 0
    assert not (folder / "checkpoints" / "pretraining.safetensors").exists()


def goes_on(old: Path, name: str, folder: Path, rounds: int) -> None:
    """Resume a run in its own directory, with one step a site."""
    changes = {
        "rounds": rounds,
        "resume": str(folder),
        "run-dir": str(folder),
        "local.steps": 1,
        "simulation.shards": str(old / "shards"),
        "sites.expected": SITES,
        "sites.wait-seconds": 1,
        "sites.deadline-seconds": 60,
    }
    assert run(local_grid(SITES), settings(old, name, **changes)) == folder
