"""Does a network's checkpoint get the score of its own rounds, and a clear answer where it cannot?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.checkpoint import load_checkpoint
from common.data.classes import ClassTable, load_table
from common.data.manifest import read_shard, write_manifest
from common.errors import UserError
from common.evaluation.metrics import Confusion, rates
from common.evaluation.networks import NetworkEvaluation
from common.settings.load import load_config
from server.commands.evaluate import evaluate_checkpoint, evaluation_text
from server.commands.probe import probe_checkpoint
from server.commands.segment import segment
from server.evaluation.networks import NetworkScorer, set_fields
from server.states import NetworkState
from tests.support.checkpoints import write_checkpoint

SYNTHETIC = load_table("synthetic")


@pytest.fixture(scope="module")
def record(clustered_network: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("out") / "deep" / "out.json"
    found = evaluate_checkpoint(clustered_network, scenes / "eval.jsonl", json_path=out)
    assert json.loads(out.read_text()) == found
    return found


def test_scores_are_those_of_the_rounds(
    clustered_network: Path, scenes: Path, record: dict[str, Any]
) -> None:
    saved = load_checkpoint(clustered_network)
    settings = {"simulation.shards": str(scenes), "eval.shard": "eval.jsonl"}
    config = load_config(saved.config.to_flat(), settings)
    score = NetworkScorer.open(config).score(NetworkState.from_arrays(saved.head, saved.extra))
    shared = evaluate_checkpoint(clustered_network, scenes / "eval.jsonl", cluster="global")
    assert shared["confusion"] == score.confusion
    assert (shared["miou"], shared["accuracy"]) == (score.miou, score.accuracy)
    assert shared["domain_miou"] == score.sets["eval"]["domain_miou"]
    assert record["miou"] == score.sets["eval"]["cluster_miou"]
    assert record["domain_miou"] == score.sets["eval"]["cluster_domain_miou"]
    assert record["domain_miou_std"] == score.sets["eval"]["cluster_domain_miou_std"]
    assert shared["per_class_precision"] == score.sets["eval"]["per_class_precision"]
    assert record["miou"] != shared["miou"]
    assert "cluster_images" not in shared


def test_record_has_the_fields_of_every_checkpoint(record: dict[str, Any]) -> None:
    confusion = Confusion.from_list(record["confusion"])
    assert confusion.total == record["pixels"] <= 6 * 72 * 96
    assert record["accuracy"] == pytest.approx(np.trace(confusion.matrix) / confusion.total)
    found = rates(confusion, np.arange(8), SYNTHETIC.names)
    assert found.items() <= record.items()
    assert (record["matching"], record["mapping"]) == ("identity", list(range(8)))
    assert list(record["per_class_iou"]) == list(SYNTHETIC.names) == record["classes"]
    assert (record["cluster"], sum(record["cluster_images"].values())) == ("nearest", 6)
    assert (record["images"], record["labelled_images"], record["split"]) == (6, 6, "eval")
    assert record["domain_miou_mean"] == pytest.approx(np.mean(list(record["domain_miou"].values())))


def test_text_names_domains_and_clusters(record: dict[str, Any]) -> None:
    text = evaluation_text(record)
    assert f"mIoU {100 * record['miou']:6.1f} %" in text
    assert "by the network of the nearest style cluster (0: " in text
    assert "mIoU by domain: mean" in text
    assert f"accuracy of classes, mean {100 * record['mean_accuracy']:.1f} %" in text
    assert re.search(r"^ +IoU +accuracy +precision$", text, re.MULTILINE)
    assert re.search(rf"^  road .* {100 * record['per_class_accuracy']['road']:.1f} %  +", text, re.MULTILINE)
    assert next(iter(record["domain_miou"])) in text
    assert "cosine" not in text
    assert "network of style cluster 1" in evaluation_text(record | {"cluster": 1})
    by_site = {
        "site_miou": {"site-0": 0.25, "site-1": None},
        "site_miou_mean": 0.25,
        "site_miou_std": 0.0,
    }
    assert "mIoU by site: mean 25.0 %, deviation 0.0 %\n    site-0   25.0 %" in evaluation_text(
        record | by_site
    )


def test_two_sites_of_a_domain_are_told_apart() -> None:
    """A domain of two sites says nothing of how far they are apart."""
    counts = {"site-10": [[4, 0], [0, 4]], "site-2": [[2, 2], [2, 2]]}
    total = Confusion.from_list([[6, 2], [2, 6]])
    sites = {name: Confusion.from_list(matrix) for name, matrix in counts.items()}
    found = set_fields(NetworkEvaluation(total, {"dusk": total}, sites), load_table("crackforest"))
    assert "domain_miou" not in found
    assert found["site_miou"] == {"site-2": pytest.approx(1 / 3), "site-10": 1.0}
    assert list(found["site_miou"]) == ["site-2", "site-10"]
    assert found["site_miou_mean"] == pytest.approx(2 / 3) and found["site_miou_std"] == pytest.approx(1 / 3)


def test_flip_and_crf_change_the_question(
    clustered_network: Path, scenes: Path, tmp_path: Path, record: dict[str, Any]
) -> None:
    shard = read_shard(scenes / "eval.jsonl")
    write_manifest(tmp_path / "one.jsonl", shard.entries[:1])
    one = {"data_root": shard.root, "classes": "synthetic"}
    plain = evaluate_checkpoint(clustered_network, tmp_path / "one.jsonl", **one)
    for extra in ({"flip": True}, {"crf": True}):
        found = evaluate_checkpoint(clustered_network, tmp_path / "one.jsonl", **one, **extra)
        assert found["confusion"] != plain["confusion"]
        assert found["pixels"] == plain["pixels"]


def test_hand_written_manifest_is_read_by_the_classes_of_the_run(
    clustered_network: Path, scenes: Path, tmp_path: Path, record: dict[str, Any]
) -> None:
    shard = read_shard(scenes / "eval.jsonl")
    write_manifest(tmp_path / "mine.jsonl", shard.entries)
    found = evaluate_checkpoint(clustered_network, tmp_path / "mine.jsonl", data_root=shard.root)
    assert found["confusion"] == record["confusion"]


def test_what_makes_no_sense_is_refused(clustered_network: Path, scenes: Path, tmp_path: Path) -> None:
    shard = scenes / "eval.jsonl"
    out = tmp_path / "o.json"
    with pytest.raises(UserError, match="--matching hungarian was given"):
        evaluate_checkpoint(clustered_network, shard, matching="hungarian", json_path=out)
    with pytest.raises(UserError, match="--protocol center-320 was given"):
        evaluate_checkpoint(clustered_network, shard, protocol="center-320", json_path=out)
    with pytest.raises(UserError, match="--cluster 7 was given"):
        evaluate_checkpoint(clustered_network, shard, cluster=7, json_path=out)
    two = ClassTable("two", ("x", "y"), ((0, 0, 0), (9, 9, 9)), remap={i: i % 2 for i in range(8)})
    (tmp_path / "two.json").write_text(json.dumps(two.to_json()))
    with pytest.raises(UserError, match="has the 2 classes of 'two' but"):
        evaluate_checkpoint(clustered_network, shard, classes=tmp_path / "two.json", json_path=out)
    whole = read_shard(shard)
    write_manifest(tmp_path / "bare.jsonl", [type(e)(e.image) for e in whole.entries])
    with pytest.raises(UserError, match="images without labels"):
        evaluate_checkpoint(clustered_network, tmp_path / "bare.jsonl", data_root=whole.root, json_path=out)
    assert not out.exists()
    with pytest.raises(UserError, match="no frozen features to probe"):
        probe_checkpoint(clustered_network, [scenes / "site-0.jsonl"], shard)


def test_clusters_are_refused_where_there_are_only_centroids(scenes: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    with pytest.raises(UserError, match="task 'unsupervised', which has no style clusters"):
        evaluate_checkpoint(path, scenes / "eval.jsonl", cluster=0)


def test_pictures_are_segmented_with_class_names(clustered_network: Path, tmp_path: Path) -> None:
    for name, mean in (("dark", 60), ("bright", 200)):
        noise = np.random.default_rng(mean).integers(-50, 50, (50, 70, 3))
        pixels = np.clip(mean + noise, 0, 255).astype(np.uint8)
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    index = segment(clustered_network, tmp_path / "out", [tmp_path / "in"], crf=True, flip=True)
    text = index.read_text()
    assert "each by the network of the nearest style cluster (0: 1, 1: 1)" in text
    assert "Classes" in text
    legend = json.loads((tmp_path / "out" / "legend.json").read_text())
    assert [entry["name"] for entry in legend] == list(SYNTHETIC.names)
    for name in ("dark", "bright"):
        label = Image.open(tmp_path / "out" / "labels" / f"{name}.png")
        assert (label.mode, label.size) == ("P", (70, 50))
    with pytest.raises(UserError, match="--cluster 5"):
        segment(clustered_network, tmp_path / "other", [tmp_path / "in"], cluster=5)
    assert not (tmp_path / "other").exists()
