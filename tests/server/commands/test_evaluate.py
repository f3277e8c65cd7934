"""Does a checkpoint get the same score whichever way one asks, and a clear answer where it cannot?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.checkpoint import load_checkpoint, save_checkpoint
from common.data.classes import ClassTable, load_table
from common.data.manifest import read_shard, write_manifest
from common.errors import UserError
from common.evaluation.metrics import Confusion, match, scores
from common.models.site_models import chosen_model
from server.commands.evaluate import evaluate_checkpoint, evaluation_text
from tests.support.checkpoints import write_checkpoint

SYNTHETIC = load_table("synthetic")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run"), SYNTHETIC, [0, 1, 2, 3, 4, 5])


@pytest.fixture(scope="module")
def record(saved: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("out") / "deep" / "out.json"
    found = evaluate_checkpoint(saved, scenes / "eval.jsonl", json_path=out)
    assert json.loads(out.read_text()) == found
    return found


def test_record_agrees_with_its_own_confusion(record: dict[str, Any]) -> None:
    confusion = Confusion.from_list(record["confusion"])
    expected = scores(confusion, match(confusion))
    assert record["mapping"] == expected.mapping
    assert record["accuracy"] == expected.accuracy
    assert record["miou"] == expected.miou
    assert list(record["per_class_iou"]) == list(SYNTHETIC.names)
    assert list(record["per_class_iou"].values()) == expected.per_class_iou
    assert confusion.total == record["pixels"] <= 6 * 72 * 96
    assert (record["images"], record["labelled_images"]) == (6, 6)
    assert (record["crf"], record["flip"], record["matching"]) == (False, False, "hungarian")
    assert 0 <= record["entropy"] <= 1
    assert sum(record["cluster_share"]) == pytest.approx(1)


def test_text_says_what_was_scored_and_how(record: dict[str, Any]) -> None:
    text = evaluation_text(record)
    assert "tiny, seed 0, round 1 on eval: 6 images" in text
    assert f"mIoU {100 * record['miou']:6.1f} %" in text
    assert "person" in text
    assert "protocol: label-size + crf" in evaluation_text(record | {"crf": True})


def test_names_from_training_are_scored_as_they_are(
    saved: Path, scenes: Path, record: dict[str, Any]
) -> None:
    fixed = evaluate_checkpoint(saved, scenes / "eval.jsonl", matching="checkpoint")
    assert fixed["mapping"] == [0, 1, 2, 3, 4, 5]
    assert fixed["confusion"] == record["confusion"]
    assert fixed["accuracy"] <= record["accuracy"]
    expected = scores(Confusion.from_list(record["confusion"]), np.arange(6))
    assert fixed["miou"] == expected.miou


def test_flip_crf_and_the_reference_protocol_change_the_question(
    saved: Path, scenes: Path, record: dict[str, Any]
) -> None:
    flipped = evaluate_checkpoint(saved, scenes / "eval.jsonl", flip=True)
    assert flipped["flip"] is True
    assert flipped["confusion"] != record["confusion"]
    assert flipped["pixels"] == record["pixels"]
    refined = evaluate_checkpoint(saved, scenes / "eval.jsonl", crf=True)
    assert refined["crf"] is True
    assert refined["confusion"] != record["confusion"]
    central = evaluate_checkpoint(saved, scenes / "eval.jsonl", protocol="center-320")
    assert central["pixels"] <= 6 * 320 * 320
    assert central["protocol"] == "center-320"


def test_hand_written_manifest_names_its_classes(
    saved: Path, scenes: Path, tmp_path: Path, record: dict[str, Any]
) -> None:
    entries = read_shard(scenes / "eval.jsonl").entries
    root = read_shard(scenes / "eval.jsonl").root
    write_manifest(tmp_path / "mine.jsonl", entries)
    with pytest.raises(UserError, match="--classes"):
        evaluate_checkpoint(saved, tmp_path / "mine.jsonl", data_root=root, json_path=tmp_path / "o.json")
    assert not (tmp_path / "o.json").exists()
    found = evaluate_checkpoint(saved, tmp_path / "mine.jsonl", data_root=root, classes="synthetic")
    assert found["confusion"] == record["confusion"]


def test_unlabelled_shard_gives_label_free_figures(saved: Path, scenes: Path, tmp_path: Path) -> None:
    shard = read_shard(scenes / "eval.jsonl")
    write_manifest(tmp_path / "bare.jsonl", [type(e)(e.image) for e in shard.entries])
    found = evaluate_checkpoint(saved, tmp_path / "bare.jsonl", data_root=shard.root)
    assert found["miou"] is None
    assert found["confusion"] is None
    assert found["mean_cosine"] > 0
    assert "mIoU" not in evaluation_text(found)


def test_what_does_not_fit_is_refused(scenes: Path, saved: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", weights_hash="0123456789abcdef")
    with pytest.raises(UserError, match="backbone weights 0123456789ab"):
        evaluate_checkpoint(other, scenes / "eval.jsonl")
    unnamed = write_checkpoint(tmp_path / "unnamed")
    with pytest.raises(UserError, match="never scored"):
        evaluate_checkpoint(unnamed, scenes / "eval.jsonl", matching="checkpoint")
    two = ClassTable("two", ("x", "y"), ((0, 0, 0), (9, 9, 9)), remap={i: i % 2 for i in range(8)})
    table = tmp_path / "two.json"
    table.write_text(json.dumps(two.to_json()))
    with pytest.raises(UserError, match=r"are called sky, .* has the classes x, y"):
        evaluate_checkpoint(saved, scenes / "eval.jsonl", classes=table, matching="checkpoint")


# --- sites that keep their own models -------------------------------------------------------------------


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("apart"), SYNTHETIC, sites=3)


def test_a_sites_own_model_gets_the_score_that_it_has_alone(
    apart: Path, scenes: Path, tmp_path: Path
) -> None:
    found = evaluate_checkpoint(apart, scenes / "eval.jsonl", site="b")
    alone = tmp_path / "round-0001.safetensors"
    save_checkpoint(alone, chosen_model(load_checkpoint(apart), "", "b"))
    expected = evaluate_checkpoint(alone, scenes / "eval.jsonl")
    assert found["site"] == "b" and expected["site"] is None
    for key in ("miou", "accuracy", "per_class_iou", "confusion", "mapping", "mean_cosine"):
        assert found[key] == expected[key]
    assert "on eval: 6 images, the model of b" in evaluation_text(found)


def test_all_sites_own_models_are_scored_one_by_one_and_averaged_under_other_names(
    apart: Path, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "all.json"
    found = evaluate_checkpoint(apart, scenes / "eval.jsonl", site="all", json_path=out)
    assert json.loads(out.read_text()) == found
    singles = {name: evaluate_checkpoint(apart, scenes / "eval.jsonl", site=name) for name in "abc"}
    assert found["site_miou"] == {name: one["miou"] for name, one in singles.items()}
    assert len(set(found["site_miou"].values())) == 3
    assert found["site_miou_mean"] == pytest.approx(np.mean(list(found["site_miou"].values())))
    assert found["site_accuracy_mean"] == pytest.approx(
        np.mean([one["accuracy"] for one in singles.values()])
    )
    for name, value in found["site_per_class_iou"].items():
        assert value == pytest.approx(np.mean([one["per_class_iou"][name] for one in singles.values()]))
    for key in ("miou", "miou_all", "accuracy", "per_class_iou", "confusion", "mapping"):
        assert found[key] is None
    text = evaluation_text(found)
    assert f"mIoU of 3 sites' own models: mean {100 * found['site_miou_mean']:.1f} %" in text
    assert "matching: hungarian, each by itself" in text and "person" in text


def test_all_sites_without_labels_have_label_free_figures(apart: Path, scenes: Path, tmp_path: Path) -> None:
    shard = read_shard(scenes / "eval.jsonl")
    write_manifest(tmp_path / "bare.jsonl", [type(e)(e.image) for e in shard.entries])
    found = evaluate_checkpoint(apart, tmp_path / "bare.jsonl", data_root=shard.root, site="all")
    assert found["miou"] is None and "site_miou" not in found and found["mean_cosine"] > 0
    assert "mean cosine" in evaluation_text(found)


def test_a_model_that_was_never_trained_is_not_scored(
    apart: Path, saved: Path, clustered_network: Path, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no site was named; give --site and one of: a, b, c .*--site all"):
        evaluate_checkpoint(apart, scenes / "eval.jsonl", json_path=tmp_path / "o.json")
    assert not (tmp_path / "o.json").exists()
    with pytest.raises(UserError, match="--site d was given"):
        evaluate_checkpoint(apart, scenes / "eval.jsonl", site="d")
    for word in ("all", "a"):
        with pytest.raises(UserError, match=f"--site {word} was given, .* only the shared one; leave it out"):
            evaluate_checkpoint(saved, scenes / "eval.jsonl", site=word)
    with pytest.raises(UserError, match="never scored"):
        evaluate_checkpoint(apart, scenes / "eval.jsonl", site="all", matching="checkpoint")
    with pytest.raises(UserError, match=r"--site a was given, but .* is of task 'supervised'"):
        evaluate_checkpoint(clustered_network, scenes / "eval.jsonl", site="a")


def test_unreadable_images_are_left_out_where_that_is_asked_for(
    saved: Path, scenes: Path, tmp_path: Path
) -> None:
    shard = read_shard(scenes / "eval.jsonl")
    entries = [*shard.entries[:3], replace(shard.entries[3], image="gone.png")]
    write_manifest(tmp_path / "some.jsonl", entries)
    given = {"data_root": shard.root, "classes": "synthetic"}
    with pytest.raises(UserError, match=r"gone\.png"):
        evaluate_checkpoint(saved, tmp_path / "some.jsonl", **given)
    found = evaluate_checkpoint(saved, tmp_path / "some.jsonl", skip_unreadable=True, **given)
    assert found["images"] == 3 and "gone.png does not exist" in found["left_out"][0]
    assert "left out: " in evaluation_text(found)
