"""Is every picture segmented by the network that was asked for, or by that of the nearest style?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common.checkpoint import load_checkpoint
from common.data.classes import load_table
from common.errors import UserError
from common.evaluation.crf import refine_logits
from common.evaluation.overlay import Bytes
from common.settings.load import load_config
from server.inference.networks import NetworkPredictor, assemble_network
from server.states import NetworkState
from tests.support.checkpoints import write_network_checkpoint

SYNTHETIC = load_table("synthetic")


def picture(mean: int, seed: int = 0) -> Bytes:
    noise = np.random.default_rng(seed).integers(-50, 50, (64, 96, 3))
    return np.clip(mean + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def nearest(clustered_network: Path) -> NetworkPredictor:
    return NetworkPredictor(load_checkpoint(clustered_network), "x", "cpu")


@pytest.fixture(scope="module")
def shared(clustered_network: Path) -> NetworkPredictor:
    return NetworkPredictor(load_checkpoint(clustered_network), "x", "cpu", "global")


@pytest.fixture(scope="module")
def bright(clustered_network: Path) -> NetworkPredictor:
    return NetworkPredictor(load_checkpoint(clustered_network), "x", "cpu", 1)


def test_logits_are_those_of_the_network(clustered_network: Path, shared: NetworkPredictor) -> None:
    saved = load_checkpoint(clustered_network)
    network = assemble_network(saved, NetworkState.from_arrays(saved.head, saved.extra), None, "x")
    image = picture(60)
    with torch.no_grad():
        expected = network(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0]
    assert torch.allclose(shared.logits(image), expected, atol=1e-5)
    labels = shared.labels(image)
    assert np.array_equal(labels, expected.argmax(0).numpy())
    assert len(np.unique(labels)) > 1


def test_each_picture_goes_to_the_cluster_of_its_style(
    nearest: NetworkPredictor, shared: NetworkPredictor, bright: NetworkPredictor
) -> None:
    before = dict(nearest.images)
    dark, light = picture(60), picture(200)
    assert torch.equal(nearest.logits(dark), shared.logits(dark))  # cluster 0 has the shared classifier
    assert torch.equal(nearest.logits(light), bright.logits(light))
    assert torch.allclose(bright.logits(light), shared.logits(light).flip(0), atol=1e-5)  # classes reversed
    assert {k: n - before.get(k, 0) for k, n in nearest.images.items()} == {0: 1, 1: 1}
    assert "nearest style cluster" in nearest.notes()[0]
    assert bright.notes() == ["network of cluster 1"]


def test_flip_averages_probabilities(shared: NetworkPredictor) -> None:
    image = picture(120)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    straight, turned = (shared.logits(one).softmax(0) for one in (image, mirrored))
    expected = (straight + turned.flip(-1)) / 2
    found = shared.logits(image, flip=True)
    assert torch.allclose(found.exp(), expected, atol=1e-5)
    assert torch.allclose(shared.logits(mirrored, flip=True), found.flip(-1), atol=1e-4)
    assert not torch.allclose(found.exp(), straight, atol=1e-3)


def test_crf_takes_the_logits_as_they_are(shared: NetworkPredictor) -> None:
    image = picture(120)
    refined = shared.labels(image, crf=True)
    logits = shared.logits(image)
    assert np.array_equal(refined, refine_logits(logits, image))
    assert np.array_equal(
        refined, refine_logits(logits.log_softmax(0), image)
    )  # a shift per pixel is nothing
    assert not np.array_equal(refined, shared.labels(image))


def test_classes_have_names_even_where_no_round_was_scored(tmp_path: Path) -> None:
    path = write_network_checkpoint(tmp_path, mapping=False)
    predictor = NetworkPredictor(load_checkpoint(path), str(path), "cpu")
    assert predictor.named
    assert predictor.legend.names == SYNTHETIC.names
    assert predictor.notes() == []


def test_clusters_that_are_not_there_are_refused(clustered_network: Path, tmp_path: Path) -> None:
    saved = load_checkpoint(clustered_network)
    with pytest.raises(UserError, match=r"--cluster 2 was given, but run has clusters 0 to 1"):
        NetworkPredictor(saved, "run", "cpu", 2)
    plain = write_network_checkpoint(tmp_path)
    with pytest.raises(UserError, match="has no style clusters"):
        NetworkPredictor(load_checkpoint(plain), "run", "cpu", 0)


def test_arrays_of_another_network_and_missing_classes_are_refused(clustered_network: Path) -> None:
    saved = load_checkpoint(clustered_network)
    del saved.head["head.4.bias"]
    saved.extra = {}
    with pytest.raises(UserError, match=r"does not fit its own settings .*head\.4\.bias"):
        NetworkPredictor(saved, "run", "cpu")
    saved.classes = None
    with pytest.raises(UserError, match="names no classes"):
        NetworkPredictor(saved, "run", "cpu")


def test_a_run_without_a_shared_network_is_refused(clustered_network: Path) -> None:
    saved = load_checkpoint(clustered_network)
    saved.config = load_config(saved.config.to_flat(), {"clusters.layers": "none", "centroids.share": "none"})
    with pytest.raises(UserError, match="holds no shared network"):
        NetworkPredictor(saved, "run", "cpu")


def test_server_memory_survives_the_disk(clustered_network: Path) -> None:
    saved = load_checkpoint(clustered_network)
    state = NetworkState.from_arrays(saved.head, saved.extra)
    assert state.averaged == 0
    assert state.grouping is not None
    assert state.grouping.k == 2
    again = NetworkState.from_arrays(saved.head, state.to_extra())
    assert sorted(again.to_extra()) == sorted(state.to_extra())
