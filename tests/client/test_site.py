"""Does a site decide for itself, and say in a sentence what it lacks?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from client.site import site_config
from common.errors import UserError
from common.settings.load import load_config
from common.settings.schema import RunConfig


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (
        "SHARD",
        "SITE",
        "CACHE",
        "STATE",
        "WEIGHTS",
        "DEVICE",
        "GPU_SHARE",
        "MINIMUM_IMAGES",
        "THREADS",
        "DATA_ROOT",
        "EVAL_SHARD",
    ):
        monkeypatch.delenv(f"SITESEG_{key}", raising=False)


def settings(**given: Any) -> RunConfig:
    return load_config({key.replace("__", ".").replace("_", "-"): value for key, value in given.items()})


def test_node_config_beats_environment_beats_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    run = settings(simulation__shards="/sim", simulation__cache="/sim-cache", simulation__threads=3)
    node: dict[str, object] = {"partition-id": 2}
    found = site_config(node, run)
    assert (found.name, found.shards, found.cache_dir) == (
        "site-2",
        (Path("/sim/site-2.jsonl"),),
        Path("/sim-cache"),
    )
    assert found.threads == 3

    monkeypatch.setenv("SITESEG_SHARD", "/env/clinic.jsonl")
    monkeypatch.setenv("SITESEG_CACHE", "/env-cache")
    monkeypatch.setenv("SITESEG_THREADS", "2")
    found = site_config(node, run)
    assert (found.name, found.shards, found.cache_dir) == (
        "clinic",
        (Path("/env/clinic.jsonl"),),
        Path("/env-cache"),
    )
    assert found.threads == 2 and found.data_root is None

    node |= {"shard": "/node/a.jsonl", "site": "hospital", "cache": "/node-cache", "state": "/node-state"}
    node |= {
        "weights": "/w.safetensors",
        "device": "cpu",
        "data-root": "/data",
        "eval-shard": "/node/e.jsonl",
    }
    found = site_config(node, run)
    assert (found.name, found.cache_dir, found.state_dir) == (
        "hospital",
        Path("/node-cache"),
        Path("/node-state"),
    )
    assert (found.data_root, found.eval_shard, found.torch_device()) == (
        Path("/data"),
        Path("/node/e.jsonl"),
        "cpu",
    )
    assert found.apply_weights(run.model).weights == "/w.safetensors"


def test_a_real_site_takes_no_path_from_the_server() -> None:
    run = settings(
        simulation__shards="/server/shards",
        simulation__cache="/server/cache",
        simulation__data_root="/server/data",
    )
    found = site_config({"shard": "/site/s.jsonl"}, run)
    paths = [found.data_root, found.eval_shard, found.cache_dir, found.state_dir, *found.shards]
    assert not any("server" in str(path) for path in paths)
    assert found.cache_dir == Path("/site/cache") and found.state_dir == Path("/site/cache/state")


def test_an_empty_value_counts_as_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITESEG_CACHE", "")
    assert site_config({"shard": "/s/a.jsonl", "site": ""}, settings()).name == "a"


def test_pooled_sites_read_every_shard_in_order_of_number(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        (tmp_path / f"site-{number}.jsonl").touch()
    (tmp_path / "site-x.jsonl").touch()
    run = settings(simulation__shards=str(tmp_path), sites__pool=True)
    found = site_config({"partition-id": 0}, run)
    assert found.name == "pooled" and [path.stem for path in found.shards] == ["site-0", "site-2", "site-10"]
    with pytest.raises(UserError, match=r"holds no site-0\.jsonl"):
        site_config(
            {"partition-id": 0}, settings(simulation__shards=str(tmp_path / "gone"), sites__pool=True)
        )


def test_each_site_has_its_own_evaluation_shard_where_sites_score() -> None:
    run = settings(simulation__shards="/sim", eval__shard="eval-{site}.jsonl", eval__where="sites")
    assert site_config({"partition-id": 1}, run).eval_shard == Path("/sim/eval-site-1.jsonl")
    at_server = settings(simulation__shards="/sim", eval__shard="dev.jsonl")
    assert site_config({"partition-id": 1}, at_server).eval_shard is None
    assert site_config({"partition-id": 1}, at_server).load_eval_shard() is None


def test_a_share_of_the_gpu_comes_from_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    assert site_config({"shard": "/s/a.jsonl"}, settings()).gpu_share == 1
    monkeypatch.setenv("SITESEG_GPU_SHARE", "0.25")
    assert site_config({"shard": "/s/a.jsonl"}, settings()).gpu_share == 0.25
    assert site_config({"shard": "/s/a.jsonl", "gpu-share": 0.5}, settings()).gpu_share == 0.5


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({}, "does not know its shard: give --node-config .* or set SITESEG_SHARD"),
        ({"partition-id": 0}, "does not know its shard"),
        ({"shard": "/s/a.jsonl", "site": "../up"}, "Site setting 'name' is '../up'"),
        ({"shard": "/s/a.jsonl", "site": "x" * 65}, "Site setting 'name'"),
        ({"shard": "/s/our clinic.jsonl"}, "Site setting 'name' is 'our clinic'"),
        ({"shard": "/s/a.jsonl", "threads": "many"}, "Site setting 'threads' is 'many'"),
        ({"shard": "/s/a.jsonl", "threads": -1}, "Site setting 'threads' is '-1'"),
        ({"shard": "/s/a.jsonl", "gpu-share": 0}, "Site setting 'gpu-share' is '0'"),
        ({"shard": "/s/a.jsonl", "gpu-share": 1.5}, "Site setting 'gpu-share' is '1.5'"),
        (
            {"shard": "/s/a.jsonl", "gpu-share": 0.5, "device": "cpu"},
            "'gpu-share' is 0.5, but device is 'cpu'",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_named(node: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        site_config(node, settings())
