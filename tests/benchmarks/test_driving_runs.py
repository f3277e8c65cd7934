"""Does a recipe of each kind of driving-scene table run, on tiny replicas of GTA5 and IDDA?"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from common.settings.load import load_config, read_recipe
from partitions.__main__ import partitions_main as partition
from server.evaluation.networks import NetworkScorer
from server.loop.run import run
from server.settings.applicability import acts
from tests.conftest import ROOT
from tests.support.federation import local_grid
from tests.support.replicas import put_label, put_picture

sys.path.insert(0, str(ROOT / "benchmarks"))

import campaign

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("narrow")]

SIZE = (48, 64)
SITES = 4
OVERRIDES: dict[str, Any] = {
    "network.weights": "random",
    "network.output-stride": 16,
    "transforms.height": 32,
    "transforms.width": 48,
    "local.steps": 1,
    "local.batch": 2,
    "source.steps": 1,
    "source.batch": 2,
    "style.height": 32,
    "style.width": 64,
    "sites.wait-seconds": 1,
    "sites.deadline-seconds": 60,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of IDDA's reduced form (four sites of two images, two bright and two dark) and of GTA5 (three)."""
    folder = tmp_path_factory.mktemp("driving")
    idda, gta5 = folder / "idda", folder / "gta5"
    clients = {f"T0{k}_C{'NS'[k % 2]}_A_U1": [10 * k, 10 * k + 1] for k in range(1, SITES + 1)}
    names = {client: [f"{number}_{client[:-3]}" for number in numbers] for client, numbers in clients.items()}
    tests = {"test_same_dom": ["98_T01_CS_A"], "test_diff_dom": ["99_T07_HRN_A"]}
    for name in [n for listed in (*names.values(), *tests.values()) for n in listed]:
        put_picture(idda / f"images/{name}.jpg", SIZE, grey=60 if "_CN_" in name else 200)
        put_label(idda / f"labels/{name}.png", [7, 1, 20, 10, 5], SIZE)
    (idda / "train.json").write_text(json.dumps(names))
    for file, listed in tests.items():
        (idda / f"{file}.txt").write_text("\n".join(listed) + "\n")
    for i in range(1, 4):
        put_picture(gta5 / f"images/{i:05d}.png", SIZE if i < 3 else (SIZE[0] + 2, SIZE[1]), grey=120)
        put_label(gta5 / f"labels/{i:05d}.png", [7, 11, 23, 26], SIZE, palette=True)
    shards = folder / "shards"
    assert partition(["idda", "--root", str(idda), "--out", str(shards / "idda")]) == 0
    assert (
        partition(["gta5", "--root", str(gta5), "--classes", "gta5-16", "--out", str(shards / "gta5")]) == 0
    )
    return folder


def tiny(data: Path, recipe: str, out: Path, **changes: Any) -> dict[str, Any]:
    """Run a recipe with the least work and return the last line of its metrics."""
    given = read_recipe(campaign.recipe_path(recipe))
    config = load_config(given, OVERRIDES)
    small = OVERRIDES | {
        "rounds": min(config.rounds, 1),
        "transforms.resize-height": min(config.transforms.resize_height, SIZE[0]),
        "transforms.resize-width": min(config.transforms.resize_width, SIZE[1]),
        "sites.per-round": min(config.sites.per_round, SITES),
        "simulation.shards": str(data / "shards" / "idda"),
        "run-dir": str(out),
        **{key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()},
    }
    sites = 1 if config.sites.pool else SITES
    small = {key: value for key, value in small.items() if acts(key, config)}  # the rest a run refuses
    run(local_grid(sites), load_config(given, small, {"sites.expected": sites}))
    last: dict[str, Any] = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return last


@pytest.fixture(scope="module")
def pretrained(narrow: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that rows of adaptation go on from."""
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    tiny(data, "gta5-pretrain-jitter", out)
    return out


@pytest.mark.parametrize(
    ("recipe", "answered"),
    [
        ("idda-grid-c2-e1-r2400", 2),
        ("idda-reduction-centralised-inverse-01", 1),
        ("idda-clusters-supervised-all", 4),
    ],
)
def test_a_row_with_labels_runs(data: Path, tmp_path: Path, recipe: str, answered: int) -> None:
    line = tiny(data, recipe, tmp_path / "run")
    assert line["round"] == 1 and len(line["sites"]) == answered and not line["quarantined"]
    assert list(line["sets"]) == ["train_eval", "ts1", "ts2"]
    assert [record["images"] for record in line["sets"].values()] == [2 * SITES, 1, 1]
    assert ("cluster_miou" in line["sets"]["ts2"]) == ("clusters" in recipe)


def test_pretraining_takes_styles_and_no_round(data: Path, tmp_path: Path) -> None:
    line = tiny(data, "gta5-pretrain-fda-7", tmp_path / "run")
    assert line["round"] == 0 and line["bytes_up"] == {} and not line["quarantined"]
    assert list(line["sets"]) == ["train_eval", "ts1", "ts2", "site-0"]
    assert (tmp_path / "run/pictures/styles.png").is_file() and campaign.finished(tmp_path / "run")


@pytest.mark.parametrize("recipe", ["idda-adapt-c2-e1-t1", "idda-clusters-adapted-decoder"])
def test_adaptation_goes_on_from_a_pretrained_model_and_opens_no_label(
    data: Path, pretrained: Path, tmp_path: Path, recipe: str
) -> None:
    copied = tmp_path / "driving"
    shutil.copytree(data / "idda", copied / "idda")
    assert partition(["idda", "--root", str(copied / "idda"), "--out", str(copied / "shards/idda")]) == 0
    for label in (copied / "idda/labels").glob("[1-4]*.png"):
        label.unlink()
    line = tiny(
        copied, recipe, tmp_path / "run",
        source__checkpoint=str(pretrained), eval__shard="ts1.jsonl,ts2.jsonl",
    )  # fmt: skip
    assert line["round"] == 1 and not line["quarantined"] and line["loss"] is not None
    assert not (tmp_path / "run/pictures/styles.png").is_file(), "nothing was pretrained"


def test_gta5_is_scored_by_its_own_raw_values(data: Path) -> None:
    given = read_recipe(campaign.recipe_path("gta5-pretrain-none"))
    scorer = NetworkScorer.open(
        load_config(given, OVERRIDES, {"simulation.shards": str(data / "shards" / "idda")})
    )
    source = scorer.shards[-1]
    assert source.name == "site-0" and scorer.classes is not None and source.classes != scorer.classes
    from common.models.network import build_network, network_to_arrays

    weights, statistics = network_to_arrays(build_network(16, scorer.config.network, 0))
    truth = scorer.evaluate(weights | statistics, source).confusion.matrix.sum(axis=0)
    a_quarter = 3 * SIZE[0] * SIZE[1] // 4
    found = {name: int(n) for name, n in zip(source.classes.names, truth, strict=True) if n}  # type: ignore[union-attr]
    assert found == dict.fromkeys(("road", "building", "sky", "vehicle"), a_quarter)
