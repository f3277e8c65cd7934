"""Does an ONNX file of a whole network give torch's answers, and say what its outputs are?"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.checkpoint import Checkpoint, load_checkpoint
from common.data.classes import load_table
from common.errors import UserError
from common.evaluation.overlay import hex_colour
from server.commands import export
from server.inference.base import Cluster, Exported, Size
from server.inference.clusters import ClusterPredictor
from server.inference.networks import NetworkPredictor, input_size
from tests.support.checkpoints import write_checkpoint

SYNTHETIC = load_table("synthetic")


def exported(saved: Checkpoint, cluster: Cluster = "global", size: Size | None = None) -> Exported:
    return NetworkPredictor(saved, "run", "cpu", cluster).export(size)


def test_exported_file_gives_the_same_classes(clustered_network: Path, tmp_path: Path) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="the extra 'export' is not installed")
    path = export.export_onnx(clustered_network, tmp_path / "model.onnx", cluster=1)
    session = importlib.import_module("onnxruntime").InferenceSession(str(path))
    images = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(9))
    (given,) = session.run(["logits"], {"images": images.numpy()})
    expected = exported(load_checkpoint(clustered_network), 1)[0](images).detach().numpy()
    assert given.shape == (3, 8, 64, 96)
    np.testing.assert_allclose(given, expected, atol=1e-3 * np.abs(expected).max())
    described = session.get_modelmeta().custom_metadata_map
    assert [entry["name"] for entry in json.loads(described["classes"])] == list(SYNTHETIC.names)
    assert described["cluster"] == "1"


def test_network_size_and_description(clustered_network: Path) -> None:
    saved = load_checkpoint(clustered_network)
    assert exported(saved)[0].size == (64, 96) == input_size(saved)
    assert exported(saved, size=(96, 128))[0].size == (96, 128)
    transforms = saved.config.transforms.model_copy(update={"eval_height": 128, "eval_width": 160})
    saved.config = saved.config.model_copy(update={"transforms": transforms})
    assert input_size(saved) == (128, 160)
    _, described = exported(saved, size=(96, 128))
    assert json.loads(described["input"]) == {"height": 96, "width": 128, "range": [0, 1], "order": "RGB"}
    person = json.loads(described["classes"])[7]
    assert person == {"id": 7, "name": "person", "colour": hex_colour(SYNTHETIC.colours[7])}


def test_a_difference_counts_in_multiples_of_the_largest_logit(
    clustered_network: Path, tmp_path: Path
) -> None:
    model, _ = exported(load_checkpoint(clustered_network))
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))

    class Session:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            assert names == ["logits"]
            return [self.factor * model(torch.from_numpy(feed["images"])).numpy()]

    export._compare(model, Session(1.0005), images, tmp_path / "m.onnx")
    with pytest.raises(UserError, match="does not agree with torch"):
        export._compare(model, Session(1.01), images, tmp_path / "m.onnx")


def test_choices_that_cannot_be_are_refused(clustered_network: Path, tmp_path: Path) -> None:
    saved = load_checkpoint(clustered_network)
    with pytest.raises(UserError, match="holds one network; give global"):
        exported(saved, "auto")
    with pytest.raises(UserError, match="--cluster 4"):
        exported(saved, 4)
    other = load_checkpoint(write_checkpoint(tmp_path))
    with pytest.raises(UserError, match="takes images of 65 x 97 pixels only"):
        ClusterPredictor(other, "run", "cpu").export((64, 64))
    with pytest.raises(UserError, match="no style clusters"):
        ClusterPredictor(other, "run", "cpu", 0)
