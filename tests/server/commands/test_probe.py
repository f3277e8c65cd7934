"""Does a linear probe find what a linear classifier can find, and leave everything else alone?"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from common.data.classes import load_table
from common.data.manifest import read_shard, write_manifest
from common.errors import UserError
from common.evaluation.metrics import Confusion, scores
from common.evaluation.probe import RIDGE, LinearFit, LinearProbe, codes_at, fit_linear
from common.models.segmenter import Geometry, Segmenter
from server.commands.probe import probe_checkpoint, probe_text
from tests.conftest import ROOT
from tests.support.checkpoints import write_checkpoint

SYNTHETIC = load_table("synthetic")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run"), SYNTHETIC, [0, 1, 2, 3, 4, 5])


@pytest.fixture(scope="module")
def record(saved: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    before = {path: path.read_bytes() for path in saved.parent.iterdir()}
    out = tmp_path_factory.mktemp("out") / "deep" / "out.json"
    found = probe_checkpoint(saved, sites(scenes), scenes / "eval.jsonl", json_path=out)
    assert json.loads(out.read_text()) == found
    assert {path: path.read_bytes() for path in saved.parent.iterdir()} == before
    return found


def sites(scenes: Path) -> list[Path]:
    return sorted(scenes.glob("site-*.jsonl"))


def regression(classes: int = 3, count: int = 600) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of very different scales whose classes overlap."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(count, 4, generator=generator) * torch.tensor([1.0, 100.0, 0.01, 5.0]) + 7
    scaled = (codes - codes.mean(0)) / codes.std(0)
    noise = torch.rand(count, classes, generator=generator).clamp(1e-9).log().neg().log().neg()
    logits = scaled @ torch.randn(4, classes, generator=generator) * 2 + noise
    return codes, logits.argmax(dim=1)


def test_the_fit_is_where_the_gradient_vanishes() -> None:
    codes, classes = regression()
    fit = fit_linear(codes, classes, 3)
    codes = codes.double()
    spread = codes.std(0, correction=0)
    weights = (fit.weights.double() * spread).requires_grad_()
    bias = (fit.bias.double() + fit.weights.double() @ codes.mean(0)).requires_grad_()
    loss = functional.cross_entropy((codes - codes.mean(0)) / spread @ weights.T + bias, classes)
    (loss + RIDGE / 2 * weights.square().sum()).backward()  # type: ignore[no-untyped-call]
    assert weights.grad is not None and bias.grad is not None
    assert float(weights.grad.abs().max()) < 1e-4 and float(bias.grad.abs().max()) < 1e-4
    assert fit.loss == pytest.approx(loss.item(), abs=1e-5)
    assert 1 < fit.steps <= 200


def test_the_fit_agrees_with_newton_steps_for_two_classes() -> None:
    codes, classes = regression(2)
    fit = fit_linear(codes, classes, 2)
    inputs = ((codes - codes.mean(0)) / codes.std(0, correction=0)).double()
    design = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.double)], dim=1)
    # two opposite columns of weights w and -w share the ridge: RIDGE / 2 * 2 |w|^2 with score 2 w
    ridge = torch.diag(torch.tensor([RIDGE / 2] * 4 + [0.0], dtype=torch.double))
    theta = torch.zeros(5, dtype=torch.double)
    for _ in range(30):
        share = torch.sigmoid(design @ theta)
        gradient = design.T @ (share - classes.double()) / len(design) + ridge @ theta
        hessian = (design.T * (share * (1 - share))) @ design / len(design) + ridge
        theta = theta - torch.linalg.solve(hessian, gradient)
    found = codes @ (fit.weights[1] - fit.weights[0]) + fit.bias[1] - fit.bias[0]
    assert torch.allclose(found.double(), design @ theta, atol=2e-2)


def test_a_class_that_the_fit_never_saw_is_never_predicted() -> None:
    codes, classes = regression(3)
    classes[classes == 1] = 3
    fit = fit_linear(codes, classes, 5)
    scores = codes @ fit.weights.T + fit.bias
    assert set(scores.argmax(1).tolist()) == {0, 2, 3} and bool(torch.isfinite(scores).all())


@pytest.mark.parametrize("stride", [None, 16])
def test_codes_at_pixels_are_those_of_the_enlarged_map(stride: int | None) -> None:
    generator = torch.Generator().manual_seed(1)
    code = torch.randn(5, 3, 4, generator=generator)
    geometry, size = Geometry(33, 49, stride), (20, 27)
    rows, columns = torch.tensor([0, 19, 7, 7]), torch.tensor([26, 0, 13, 14])
    enlarged = Segmenter(torch.nn.Identity(), torch.zeros(2, 5), geometry).resize(code[None], size)[0]
    found = codes_at(code, geometry, size, rows, columns)
    assert torch.allclose(found, enlarged[:, rows, columns].T, atol=1e-6)


def test_scores_on_the_grid_enlarged_are_scores_of_enlarged_codes() -> None:
    generator = torch.Generator().manual_seed(2)
    weights, bias = torch.randn(3, 5, generator=generator), torch.randn(3, generator=generator)
    base = Segmenter(torch.nn.Identity(), torch.zeros(2, 5), Geometry(32, 48))
    probe = LinearProbe(base, LinearFit(weights, bias, 0.0, 1))
    code = torch.randn(2, 5, 2, 3, generator=generator)
    large = torch.einsum("bdhw,cd->bchw", base.resize(code, (9, 11)), weights) + bias[:, None, None]
    assert torch.allclose(probe.logits_of_code(code, (9, 11)), large, atol=1e-5)
    assert torch.equal(probe.labels_of_code(probe.code(code), (9, 11)), large.argmax(1).to(torch.uint8))
    assert probe.num_clusters == 3


def test_record_agrees_with_its_own_confusion(record: dict[str, Any]) -> None:
    confusion = Confusion.from_list(record["confusion"])
    expected = scores(confusion, np.arange(SYNTHETIC.num_classes))
    assert (record["miou"], record["accuracy"]) == (expected.miou, expected.accuracy)
    assert record["mapping"] == list(range(SYNTHETIC.num_classes)) and record["matching"] == "identity"
    assert list(record["per_class_iou"]) == list(SYNTHETIC.names)
    assert (record["images"], record["labelled_images"], record["split"]) == (6, 6, "eval")
    assert record["train"]["images"] == 40 and record["train"]["pixels"] <= 40 * 1000
    assert record["train"]["splits"] == ["site-0", "site-1", "site-2", "site-3"]


def test_it_beats_the_commonest_class_and_features_beat_a_random_head(
    saved: Path, scenes: Path, record: dict[str, Any]
) -> None:
    truth = np.asarray(record["confusion"]).sum(axis=0)
    assert record["accuracy"] > truth.max() / truth.sum()
    bare = probe_checkpoint(saved, sites(scenes), scenes / "eval.jsonl", on="features", steps=40)
    assert bare["on"] == "features" and bare["train"]["loss"] < record["train"]["loss"]
    assert bare["confusion"] != record["confusion"]


def test_the_same_seed_gives_the_same_probe(saved: Path, scenes: Path, record: dict[str, Any]) -> None:
    again = probe_checkpoint(saved, sites(scenes), scenes / "eval.jsonl")
    assert {**again, "seconds": 0} == {**record, "seconds": 0}
    fewer = probe_checkpoint(saved, sites(scenes), scenes / "eval.jsonl", steps=2)
    assert fewer["train"]["steps"] == 2 and fewer["train"]["loss"] > record["train"]["loss"]


def test_the_reference_protocol_holds_for_both_shards(saved: Path, scenes: Path) -> None:
    found = probe_checkpoint(saved, sites(scenes)[:1], scenes / "eval.jsonl", protocol="center-320")
    assert found["protocol"] == "center-320" and found["pixels"] <= 6 * 320 * 320


def test_flip_and_crf_belong_to_the_score_and_not_to_the_fit(
    saved: Path, scenes: Path, record: dict[str, Any]
) -> None:
    flipped = probe_checkpoint(saved, sites(scenes), scenes / "eval.jsonl", flip=True)
    refined = probe_checkpoint(saved, sites(scenes), scenes / "eval.jsonl", crf=True)
    assert flipped["train"] == refined["train"] == record["train"]
    assert len({json.dumps(found["confusion"]) for found in (record, flipped, refined)}) == 3
    assert (flipped["crf"], flipped["flip"], refined["crf"], refined["flip"]) == (False, True, True, False)
    assert "label-size + flip" in probe_text(flipped) and "label-size + crf" in probe_text(refined)
    assert "label-size\n" in probe_text(record)


def test_text_says_that_labels_were_used(record: dict[str, Any]) -> None:
    text = probe_text(record)
    assert "linear probe, with labels, on the codes of the head" in text
    assert "pixels of 40 images" in text and "scored on eval: 6 images" in text
    assert f"mIoU {100 * record['miou']:6.1f} %" in text and "person" in text


def test_what_does_not_fit_is_refused(saved: Path, scenes: Path, tmp_path: Path) -> None:
    shard = read_shard(scenes / "site-0.jsonl")
    with pytest.raises(UserError, match=r"6 images of .* are among those to fit on"):
        probe_checkpoint(saved, [scenes / "eval.jsonl"], scenes / "eval.jsonl")
    write_manifest(tmp_path / "bare.jsonl", [type(e)(e.image) for e in shard.entries])
    with pytest.raises(UserError, match="names no label; a linear probe"):
        probe_checkpoint(saved, [tmp_path / "bare.jsonl"], scenes / "eval.jsonl", data_root=shard.root)
    other = write_checkpoint(tmp_path / "other", weights_hash="0123456789abcdef")
    with pytest.raises(UserError, match="backbone weights 0123456789ab"):
        probe_checkpoint(other, sites(scenes), scenes / "eval.jsonl")


def test_training_never_comes_near_the_probe() -> None:
    """Only the command and what it calls import it."""
    users = set()
    for package in ("client", "common", "server", "partitions"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            named = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            if named & {"common.evaluation.probe", "server.commands.probe"}:
                users.add(path.relative_to(ROOT).as_posix())
    assert users == {"server/__main__.py", "server/commands/probe.py"}


def test_a_sites_own_head_is_probed_and_an_untrained_one_never(scenes: Path, tmp_path: Path) -> None:
    apart = write_checkpoint(tmp_path / "apart", sites=2)
    shards: tuple[Any, ...] = (sites(scenes)[:1], scenes / "eval.jsonl")
    with pytest.raises(UserError, match="give --site and one of: a, b"):
        probe_checkpoint(apart, *shards)
    found = {site: probe_checkpoint(apart, *shards, site=site, steps=5) for site in "ab"}
    assert found["a"]["confusion"] != found["b"]["confusion"]
    assert "on the codes of the head of b" in probe_text(found["b"])
    bare = probe_checkpoint(apart, *shards, on="features", steps=5)  # no head is looked at
    assert bare["site"] is None


def test_a_shared_head_is_probed_though_centroids_are_not(scenes: Path, tmp_path: Path) -> None:
    heads = write_checkpoint(tmp_path / "heads", **{"centroids.share": "head"})
    assert probe_checkpoint(heads, sites(scenes)[:1], scenes / "eval.jsonl", steps=2)["site"] is None
