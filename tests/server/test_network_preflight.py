"""Does a good run of whole networks pass the questions before it, and does nobody look at labels without need?

What is refused, and in which words, stands in ``tests/test_bad_input.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.config import RunConfig
from common.data.classes import SYNTHETIC, TABLES
from common.errors import UserError
from server.network_preflight import check_clusters, need_classes, scored_shards
from server.network_scoring import evaluation_shards
from server.network_settings import refuse_conflicts, refuse_other_form
from server.preflight import check_run
from server.scoring import evaluation_shard
from tests.support.federation import network_config
from tests.support.small_network import small_network


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    with small_network():
        yield


def by_hand(scenes: Path, folder: Path) -> Path:
    """Copy the manifests without their partition.json, as someone writes them who has none."""
    described = json.loads((scenes / "partition.json").read_text())
    shards = folder / "by-hand"
    shutil.copytree(scenes / described["root"], shards)
    for path in scenes.glob("*.jsonl"):
        shutil.copy(path, shards)
    return shards


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eval__shard": "eval.jsonl", "clusters__layers": "decoder"},
        {"eval__where": "sites", "eval__shard": "{site}.jsonl"},
        {"sites__pool": True, "eval__shard": "eval.jsonl"},
        {"task": "adaptation", "style__transfer": "lab", "rounds": 0},
        {"task": "adaptation", "centroids__share": "none", "teacher__update": "student"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "plain",
)
def test_what_can_run_passes_and_leaves_an_empty_run_directory(
    scenes: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    before = files(scenes)
    check_run(network_config(scenes, tmp_path, **settings))
    assert files(tmp_path) == {tmp_path / "run"} and files(scenes) == before


def test_hand_written_manifests_take_the_table_that_the_run_names(scenes: Path, tmp_path: Path) -> None:
    shards = by_hand(scenes, tmp_path)
    check_run(network_config(shards, tmp_path, eval__classes="synthetic", eval__shard="eval.jsonl"))
    with pytest.raises(UserError, match=r"needs a class table and none is known; name one by eval\.classes"):
        check_run(network_config(shards, tmp_path))


def labels_of(scenes: Path, name: str) -> set[str]:
    return {json.loads(line)["label"] for line in (scenes / f"{name}.jsonl").read_text().splitlines()}


def test_adaptation_looks_at_no_label_of_a_site(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: set[str] = set()
    root = (scenes / json.loads((scenes / "partition.json").read_text())["root"]).resolve()

    def closed(path: Path, *_: object) -> None:
        opened.add(Path(path).relative_to(root).as_posix())
        raise UserError("Closed.")

    monkeypatch.setattr("common.data.pairs.read_label", closed)
    with pytest.raises(UserError, match="Closed"):
        check_run(network_config(scenes, tmp_path, task="adaptation"))
    assert opened == labels_of(scenes, "eval")  # the source
    opened.clear()
    with pytest.raises(UserError, match="Closed"):
        check_run(network_config(scenes, tmp_path))
    assert opened == labels_of(scenes, "site-0")


@pytest.mark.parametrize(
    ("settings", "sites", "fits"),
    [
        ({}, 1, True),
        ({"clusters__layers": "bn"}, 3, True),
        ({"clusters__layers": "bn"}, 2, False),
        ({"clusters__layers": "bn", "clusters__exact": 2}, 2, True),
        ({"clusters__layers": "bn", "clusters__exact": 3}, 2, False),
        ({"clusters__layers": "bn", "clusters__smallest": 4}, 4, False),
    ],
)
def test_clusters_need_sites(
    scenes: Path, tmp_path: Path, settings: dict[str, Any], sites: int, fits: bool
) -> None:
    config = network_config(scenes, tmp_path, **settings)
    if fits:
        check_clusters(config, sites)
    else:
        with pytest.raises(UserError, match=f"but there are {sites}; lower it"):
            check_clusters(config, sites)


def test_the_table_is_that_of_the_shards_folder(scenes: Path, tmp_path: Path) -> None:
    assert need_classes(network_config(scenes, tmp_path)) == SYNTHETIC
    assert need_classes(network_config(scenes, tmp_path, eval__classes="camvid")).name == "camvid"


def test_scored_labels_mean_what_their_own_table_says(tmp_path: Path) -> None:
    """GTA5 and IDDA write the same 16 classes by different raw values: one run may be scored on both."""
    described = {"dataset": "f", "rule": "iid", "seed": 0, "root": ".", "sites": {"site-0": 1}}
    for name, table in (("game", TABLES["gta5-16"]), ("bare", None)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.jsonl").write_text(json.dumps({"image": "a.png", "label": "b.png"}) + "\n")
        if table is not None:
            (folder / "partition.json").write_text(json.dumps(described | {"classes": table.to_json()}))
    game, bare = (str(tmp_path / name / f"{name}.jsonl") for name in ("game", "bare"))

    def asked(shard: str, classes: str = "idda-16") -> RunConfig:
        return network_config(tmp_path, tmp_path, eval__shard=shard, eval__classes=classes)

    both = evaluation_shards(asked(f"{game}, {bare}"))
    assert [shard.classes for shard in both] == [TABLES["gta5-16"], TABLES["idda-16"]]
    for shard, table in ((game, "gta5-16"), (bare, "idda-16")):
        found = evaluation_shard(asked(shard))
        assert found is not None and found.classes == TABLES[table]
    for read in (evaluation_shards, evaluation_shard):
        with pytest.raises(UserError, match=r"table 'gta5-16' but eval\.classes is 'gta5-13', whose names"):
            read(asked(game, "gta5-13"))


def test_shards_of_sites_are_scored_once_each(scenes: Path, tmp_path: Path) -> None:
    config = network_config(scenes, tmp_path, eval__where="sites", eval__shard="eval.jsonl")
    assert [shard.name for shard in scored_shards(config, ["site-0", "site-1"])] == ["eval"]
    assert scored_shards(network_config(scenes, tmp_path, eval__where="none"), ["site-0"]) == []


def test_what_honours_every_setting_is_not_refused(scenes: Path, tmp_path: Path) -> None:
    fine: list[dict[str, Any]] = [
        {"aggregation__optimizer": "yogi", "aggregation__rule": "median"},
        {"clusters__layers": "bn", "network__batchnorm": "local-statistics"},
        {"clusters__layers": "bn+decoder", "network__batchnorm": "local"},
        {"task": "adaptation", "clusters__layers": "all", "teacher__update": "mean"},
    ]
    for settings in fine:
        refuse_conflicts(network_config(scenes, tmp_path, **settings))


def test_a_run_may_go_on_with_another_length_and_learning_rate(scenes: Path, tmp_path: Path) -> None:
    one = network_config(scenes, tmp_path)
    refuse_other_form(one, network_config(scenes, tmp_path, rounds=9, sgd__lr=0.5))
    with pytest.raises(UserError, match=r"aggregation\.optimizer = 'none', this run has 'adam'"):
        refuse_other_form(one, network_config(scenes, tmp_path, aggregation__optimizer="adam"))
