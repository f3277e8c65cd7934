"""Does a whole run keep its promises: reproducible, resumable, deaf to order, and hard to break?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message

from common.checkpoint import checkpoint_path, load_checkpoint
from common.errors import UserError
from common.evaluation.correspondences import CORRESPONDENCES
from server.centroids.base import directions
from server.commands.evaluate import evaluate_checkpoint
from server.loop import left_out
from server.loop.run import run
from tests.support.federation import last_hash, local_grid, metrics, tiny_config
from tests.support.local_grid import Answer

SITES = 4
Real = Callable[[Message], Message]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Callable[..., Path]:
    """Return the directory of a run of three rounds with these settings, computed once; read-only."""

    @cache
    def whole(**settings: Any) -> Path:
        folder = tmp_path_factory.mktemp("trained")
        return run(local_grid(SITES), tiny_config(scenes, folder / "run", SITES, **settings))

    return whole


@pytest.mark.parametrize("preset", ["default", "fuss-ref", "fuss-clean"])
def test_a_run_scores_checkpoints_and_reports(trained: Callable[..., Path], preset: str) -> None:
    run_dir = trained(preset=preset)
    found = metrics(run_dir)
    assert [line["round"] for line in found] == [1, 2, 3]
    for line in found:
        assert line["sites"] == [f"site-{i}" for i in range(SITES)]
        assert 0 < line["miou"] < 1
        assert line["miou_all"] <= line["miou"] + 1e-12
        assert set(line["per_class_iou"]) >= {"road", "sky"}
    assert np.isfinite(found[-1]["loss"])
    checkpoint = load_checkpoint(run_dir)
    assert checkpoint.round == 3
    assert checkpoint.config.preset == preset
    page = (run_dir / "report.html").read_text()
    assert len(page) > 10_000
    assert "Ways of the centroids" in page and "Precision and recall of correspondences" in page
    assert {
        len(curve["recall"]) for curve in json.loads((run_dir / CORRESPONDENCES).read_text())["curves"]
    } == {40}
    assert sorted(path.name for path in (run_dir / "pictures").iterdir()) == [
        "round-0001.png",
        "round-0003.png",
    ]


def test_published_conventions_stand_beside_ours_where_they_are_asked_for(
    tmp_path: Path, scenes: Path, trained: Callable[..., Path]
) -> None:
    config = tiny_config(scenes, tmp_path / "run", SITES, rounds=3, eval__published=True)
    run_dir = run(local_grid(SITES), config)
    line, plain = metrics(run_dir)[-1], metrics(trained(preset="default"))[-1]
    assert line["miou"] == plain["miou"] and "published_miou" not in plain
    record = evaluate_checkpoint(run_dir, scenes / "eval.jsonl")
    assert record["published_miou"] == line["published_miou"]
    log = (run_dir / "log.txt").read_text()
    assert f"mIoU {line['miou']:.3f}" in log and f"as published {line['published_miou']:.3f}" in log


def test_polish_passes_fit_the_centroids_of_any_rule_to_the_final_head(tmp_path: Path, scenes: Path) -> None:
    cosines, saved = [], []
    for passes in (0, 4):
        settings: dict[str, Any] = {"preset": "fuss-ref", "centroids__polish_passes": passes, "rounds": 1}
        run_dir = run(local_grid(SITES), tiny_config(scenes, tmp_path / str(passes), SITES, **settings))
        saved.append(load_checkpoint(run_dir))
        found = [evaluate_checkpoint(run_dir, scenes / f"site-{i}.jsonl") for i in range(SITES)]
        cosines.append(sum(record["mean_cosine"] for record in found))
    assert all(np.array_equal(saved[1].head[name], array) for name, array in saved[0].head.items())
    assert cosines[1] > cosines[0]
    assert not np.array_equal(saved[1].centroids, saved[0].centroids)


def test_neither_node_ids_nor_the_order_of_replies_change_the_result(tmp_path: Path, scenes: Path) -> None:
    hashes = []
    for shuffle in (0, 1):
        grid = local_grid(SITES, shuffle)
        grid.reverse = bool(shuffle)
        config = tiny_config(scenes, tmp_path / str(shuffle), SITES, sites__per_round=3, eval__shard="")
        hashes.append(last_hash(run(grid, config)))
    assert hashes[0] == hashes[1]


def test_another_seed_gives_another_model(tmp_path: Path, scenes: Path, trained: Callable[..., Path]) -> None:
    other = run(local_grid(SITES), tiny_config(scenes, tmp_path / "run", SITES, seed=1, rounds=1))
    first = metrics(trained(preset="default"))[0]
    assert metrics(other)[0]["checkpoint_sha256"] != first["checkpoint_sha256"]


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "default"},
        {"preset": "fuss-clean", "local__keep_optimizer": True},
        {"preset": "fuss-clean", "centroids__merge": "lloyd", "centroids__momentum": 0.5},
        {"preset": "fuss-ref", "local__moon_weight": 1.0, "centroids__share": "head"},
        {"preset": "fuss-ref", "aggregation__optimizer": "adam"},
    ],
)
def test_a_resumed_run_ends_with_the_same_hash(
    tmp_path: Path, scenes: Path, trained: Callable[..., Path], settings: dict[str, Any]
) -> None:
    whole = trained(**settings)
    half = run(local_grid(SITES), tiny_config(scenes, tmp_path / "half", SITES, rounds=2, **settings))
    config = tiny_config(scenes, tmp_path / "half", SITES, resume=str(half), **settings)
    resumed = run(local_grid(SITES, shuffle=5), config)
    assert resumed == half
    assert [line["round"] for line in metrics(resumed)] == [1, 2, 3]
    assert last_hash(resumed) == last_hash(whole)


def test_going_back_to_an_earlier_round_drops_the_later_ones(
    tmp_path: Path, scenes: Path, trained: Callable[..., Path]
) -> None:
    whole = trained(preset="default")
    again = shutil.copytree(whole, tmp_path / "run")
    resume = str(checkpoint_path(again, 1))
    run(local_grid(SITES), tiny_config(scenes, again, SITES, resume=resume))
    assert [line["round"] for line in metrics(again)] == [1, 2, 3]
    assert last_hash(again) == last_hash(whole)


def raises(message: Message, real: Real) -> Answer:
    return Error(code=2, reason="boom")


def hangs(message: Message, real: Real) -> Answer:
    return None


def answers_with(change: Callable[[Message], None]) -> Callable[[Message, Real], Answer]:
    def fault(message: Message, real: Real) -> Answer:
        reply = real(message)
        if message.metadata.message_type == "train":
            change(reply)
        return reply

    return fault


def _head(reply: Message) -> ArrayRecord:
    return reply.content.array_records["head"]


def nan(reply: Message) -> None:
    name = next(iter(_head(reply)))
    value = _head(reply)[name].numpy().copy()
    value.flat[0] = np.nan
    _head(reply)[name] = Array(value)


def wrong_shape(reply: Message) -> None:
    _head(reply)[next(iter(_head(reply)))] = Array(np.zeros((3, 2), np.float32))


def wrong_type(reply: Message) -> None:
    name = next(iter(_head(reply)))
    _head(reply)[name] = Array(_head(reply)[name].numpy().astype("<U1"))


def truncated(reply: Message) -> None:
    name = next(iter(_head(reply)))
    array = _head(reply)[name]
    _head(reply)[name] = Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=array.data[:-9])


def oversized(reply: Message) -> None:
    _head(reply)[next(iter(_head(reply)))] = Array(np.zeros(4_000_000, np.float32))


def other_version(reply: Message) -> None:
    reply.content.config_records["facts"]["wire-version"] = 99


def other_weights(reply: Message) -> None:
    reply.content.config_records["facts"]["weights-hash"] = "0" * 64


def no_head(reply: Message) -> None:
    del reply.content["head"]


def impossible_sums(reply: Message) -> None:
    sums = reply.content.array_records["sums"]
    sums["sums"] = Array(sums["sums"].numpy() * 1e6)


def nameless(reply: Message) -> None:
    reply.content["facts"] = ConfigRecord()


BROKEN: list[tuple[Callable[[Message, Real], Answer], str]] = [
    (raises, "raised an error"),
    (hangs, "did not answer within"),
    (answers_with(nan), "NaN"),
    (answers_with(wrong_shape), "shape (3, 2)"),
    (answers_with(wrong_type), "type that is not allowed"),
    (answers_with(truncated), "cannot be read as an array"),
    (answers_with(oversized), "oversized"),
    (answers_with(other_version), "wire version 99"),
    (answers_with(other_weights), "other backbone weights"),
    (answers_with(no_head), "'head' is missing"),
    (answers_with(impossible_sums), "longer than"),
    (answers_with(nameless), "which site"),
]
"""What a site answers in one round after the other, and what the line of that round says of it."""


def test_a_broken_site_costs_the_round_that_site_and_nothing_else(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(left_out, "MOST_REFUSALS", len(BROKEN))  # here it is asked again after each
    grid = local_grid(SITES)
    broken = next(node for node, given in grid.node_configs.items() if given["partition-id"] == 2)

    def after_the_greeting(message: Message, real: Real) -> Answer:
        number = int(message.metadata.group_id or 0)
        if message.metadata.message_type != "train" or number > len(BROKEN):
            return real(message)
        return BROKEN[number - 1][0](message, real)

    grid.faults[broken] = after_the_greeting
    settings = {"preset": "fuss-clean", "centroids__merge": "lloyd", "sites__deadline_seconds": 1.5}
    settings |= {"rounds": len(BROKEN) + 1, "eval__shard": ""}
    run_dir = run(grid, tiny_config(scenes, tmp_path / "run", SITES, **settings))
    log, found = (run_dir / "log.txt").read_text(), metrics(run_dir)
    failures = []
    for line, (_, reason) in zip(found[:-1], BROKEN, strict=True):
        said = line["quarantined"].get("site-2", "nothing")
        others = line["sites"] == ["site-0", "site-1", "site-3"] and list(line["quarantined"]) == ["site-2"]
        if not (others and line["counted"] and reason in said and said in log):
            failures.append(f"expected {reason!r}: {line['sites']} {line['quarantined']}")
    assert not failures, "\n".join(failures)
    assert found[-1]["sites"] == [f"site-{i}" for i in range(SITES)] and not found[-1]["quarantined"]
    assert all(np.isfinite(array).all() for array in load_checkpoint(run_dir).head.values())


def test_a_round_with_too_few_sites_does_not_count_and_three_end_the_run(
    tmp_path: Path, scenes: Path
) -> None:
    grid = local_grid(SITES)
    for node in grid.node_configs:
        grid.faults[node] = lambda m, real: real(m) if m.metadata.message_type != "train" else Error(2, "no")
    config = tiny_config(scenes, tmp_path / "run", SITES, rounds=5)
    with pytest.raises(UserError, match="3 rounds in a row"):
        run(grid, config)
    found = metrics(tmp_path / "run")
    assert [line["counted"] for line in found] == [False, False]
    assert found[0]["checkpoint_sha256"] == found[1]["checkpoint_sha256"]


def test_a_site_error_reaches_the_log_without_its_paths(tmp_path: Path, scenes: Path) -> None:
    grid = local_grid(SITES)
    victim = next(iter(grid.node_configs))
    grid.node_configs[victim] = {
        "partition-id": 0,
        "shard": "/secret/patient-17/list.jsonl",
        "site": "clinic",
    }
    run_dir = run(grid, tiny_config(scenes, tmp_path / "run", SITES - 1, rounds=1, eval__shard=""))
    reason = metrics(run_dir)[0]["quarantined"]["clinic"]
    assert "does not exist" in reason
    assert "patient" not in reason


def test_two_sites_of_one_name_are_refused(tmp_path: Path, scenes: Path) -> None:
    grid = local_grid(SITES)
    nodes = sorted(grid.node_configs)
    grid.node_configs[nodes[1]] = dict(grid.node_configs[nodes[0]])
    run_dir = run(grid, tiny_config(scenes, tmp_path / "run", SITES, rounds=1, eval__shard=""))
    line = metrics(run_dir)[0]
    assert len(line["sites"]) == SITES - 1
    assert "another node already calls itself" in next(iter(line["quarantined"].values()))


def test_no_site_at_all_ends_with_a_sentence(tmp_path: Path, scenes: Path) -> None:
    with pytest.raises(UserError, match="0 usable site"):
        run(local_grid(0), tiny_config(scenes, tmp_path / "run", 1))


@pytest.mark.parametrize(
    "preset", [{}, {"preset": "fuss-ref"}, {"preset": "fuss-clean", "centroids__merge": "lloyd"}]
)
def test_local_only_scores_every_sites_own_model(
    tmp_path: Path, scenes: Path, preset: dict[str, Any]
) -> None:
    settings = {"rounds": 2, "centroids__share": "none"} | preset
    run_dir = run(local_grid(SITES), tiny_config(scenes, tmp_path / "run", SITES, **settings))
    line = metrics(run_dir)[-1]
    assert line["miou"] is None
    assert sorted(line["site_miou"]) == [f"site-{i}" for i in range(SITES)]
    assert line["site_miou_mean"] == pytest.approx(np.mean(list(line["site_miou"].values())))
    extra = load_checkpoint(run_dir).extra
    weights = [extra[f"site/site-{i}/head/linear.weight"] for i in range(SITES)]
    assert not any(np.array_equal(weights[0], other) for other in weights[1:])
    start = load_checkpoint(checkpoint_path(run_dir, 1)).head
    assert all(np.array_equal(start[key], load_checkpoint(run_dir).head[key]) for key in start)


@pytest.mark.parametrize("preset", ["default", "fuss-ref", "fuss-clean"])
def test_one_site_is_centralised_training_bit_for_bit(tmp_path: Path, scenes: Path, preset: str) -> None:
    """Merging one site changes nothing: the federation's head and centroids are those that site trained."""
    settings = {"preset": preset, "sites__pool": True, "eval__shard": ""}
    merged = run(local_grid(1), tiny_config(scenes, tmp_path / "a", 1, **settings))
    alone = run(local_grid(1), tiny_config(scenes, tmp_path / "b", 1, centroids__share="none", **settings))
    kept, whole = load_checkpoint(alone).extra, load_checkpoint(merged)
    own = {k.removeprefix("site/pooled/head/"): v for k, v in kept.items() if "head/" in k}
    assert own.keys() == whole.head.keys()
    assert all(np.array_equal(own[key], whole.head[key]) for key in whole.head)
    if preset == "fuss-clean":  # the mean on the sphere is a direction: after a round others start from there
        first = [load_checkpoint(checkpoint_path(folder, 1)) for folder in (merged, alone)]
        centroids = [
            directions(first[0].centroids),
            directions(first[1].extra["site/pooled/centroids/centroids"]),
        ]
        np.testing.assert_allclose(*centroids, atol=1e-6)
        return
    centroids = [whole.centroids, kept["site/pooled/centroids/centroids"]]
    if preset == "fuss-ref":  # maximin numbers the rows in the order in which it selects them
        assert not np.array_equal(*centroids)
        centroids = [rows[np.lexsort(rows.T)] for rows in centroids]
    assert np.array_equal(*centroids)


@pytest.mark.parametrize("preset", ["default", "fuss-ref"])
def test_labels_are_never_opened_while_training(
    tmp_path: Path, scenes: Path, trained: Callable[..., Path], preset: str
) -> None:
    """Training with every label file gone gives the same model, bit for bit."""
    copy = tmp_path / "scenes"
    shutil.copytree(scenes, copy, ignore=shutil.ignore_patterns("cache"))
    described = json.loads((copy / "partition.json").read_text())
    labels = [path for path in copy.rglob("*.png") if "label" in str(path.parent)]
    assert len(labels) > 20
    for path in labels:
        path.unlink()
    described.pop("root", None)
    settings = {"eval__shard": "", "simulation__data_root": str(copy / "data"), "preset": preset}
    blind = run(local_grid(SITES), tiny_config(copy, tmp_path / "blind", SITES, **settings))
    assert last_hash(blind) == last_hash(trained(preset=preset))
    line = metrics(blind)[-1]
    assert line["miou"] is None
    assert line["mean_cosine"] is not None


def test_scores_of_sites_are_summed_then_matched_once(tmp_path: Path, scenes: Path) -> None:
    settings = {"eval__where": "sites", "eval__shard": "{site}.jsonl", "rounds": 1}
    run_dir = run(local_grid(SITES), tiny_config(scenes, tmp_path / "run", SITES, **settings))
    line = metrics(run_dir)[-1]
    assert 0 < line["miou"] < 1
    total = np.asarray(line["confusion"])
    shards = [text for i in range(SITES) for text in (scenes / f"site-{i}.jsonl").read_text().splitlines()]
    assert total.sum() <= len(shards) * 72 * 96
    assert total.sum() > 0.8 * len(shards) * 72 * 96


def test_float16_halves_the_payload(tmp_path: Path, scenes: Path) -> None:
    sizes = []
    for dtype in ("float32", "float16"):
        settings = {"preset": "fuss-clean", "rounds": 1, "eval__shard": "", "wire__dtype": dtype}
        config = tiny_config(scenes, tmp_path / dtype, SITES, **settings)
        line = metrics(run(local_grid(SITES), config))[-1]
        sizes.append(line["bytes_up"]["site-0"])
    assert 0.48 < sizes[1] / sizes[0] < 0.52


def test_an_existing_run_is_never_overwritten(scenes: Path, trained: Callable[..., Path]) -> None:
    whole = trained(preset="default")
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    with pytest.raises(UserError, match="already holds a run"):
        run(local_grid(SITES), tiny_config(scenes, whole, SITES))
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_a_checkpoint_of_another_model_is_refused(
    tmp_path: Path, scenes: Path, trained: Callable[..., Path]
) -> None:
    first = trained(preset="default")
    config = tiny_config(scenes, tmp_path / "two", SITES, model__dim=8, resume=str(first))
    with pytest.raises(UserError, match=r"model\.dim = 16"):
        run(local_grid(SITES), config)


def test_old_checkpoints_are_pruned_on_request(tmp_path: Path, scenes: Path) -> None:
    config = tiny_config(scenes, tmp_path / "run", SITES, checkpoint__keep=2, eval__shard="")
    run_dir = run(local_grid(SITES), config)
    kept = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert [name for name in kept if name.endswith("json")] == ["round-0002.json", "round-0003.json"]
    assert len(kept) == 4


def test_a_site_that_keeps_its_own_model_leaves_the_shared_one_to_be_scored(
    tmp_path: Path, scenes: Path
) -> None:
    settings = {"preset": "fuss-ref", "aggregation__keep_least_moved": True, "rounds": 2}
    run_dir = run(local_grid(SITES), tiny_config(scenes, tmp_path / "run", SITES, **settings))
    line = metrics(run_dir)[-1]
    assert line["miou"] is not None and "site_miou" not in line
    own = {key.split("/")[1] for key in load_checkpoint(run_dir).extra if key.startswith("site/")}
    assert len(own) == 1


def test_sites_that_share_no_whole_model_are_scored_one_by_one(tmp_path: Path, scenes: Path) -> None:
    settings = {"preset": "fuss-ref", "centroids__share": "head", "rounds": 1}
    settings |= {"eval__where": "sites", "eval__shard": "eval.jsonl"}
    on_sites = run(local_grid(SITES), tiny_config(scenes, tmp_path / "sites", SITES, **settings))
    settings |= {"eval__where": "server"}
    at_server = run(local_grid(SITES), tiny_config(scenes, tmp_path / "server", SITES, **settings))
    found, expected = metrics(on_sites)[0], metrics(at_server)[0]
    assert found["miou"] is None and "confusion" not in found
    assert sorted(found["site_miou"]) == [f"site-{i}" for i in range(SITES)]
    for key in ("site_miou", "site_accuracy", "site_per_class_iou"):
        assert found[key] == expected[key]
    record = evaluate_checkpoint(at_server, scenes / "eval.jsonl", site="all")
    assert record["site_miou"] == expected["site_miou"]
