"""Is an ONNX file kept only if it gives torch's answers?"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.checkpoint import load_checkpoint
from common.data.classes import load_table
from common.errors import UserError
from server.commands import export
from server.inference.base import Exported
from server.inference.clusters import ClusterPredictor, WholeModel
from tests.support.checkpoints import write_checkpoint

SYNTHETIC = load_table("synthetic")


def exported(checkpoint: Path) -> Exported:
    return ClusterPredictor(load_checkpoint(checkpoint), "run", "cpu").export()


def test_without_the_extra_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = write_checkpoint(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"\[export\]"):
        export.export_onnx(saved, tmp_path / "model.onnx")
    assert list(tmp_path.glob("*.onnx")) == []


def test_exported_file_gives_the_same_clusters(tmp_path: Path) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="the extra 'export' is not installed")
    saved = write_checkpoint(tmp_path / "run", SYNTHETIC, [3, -1, 0, 1, 7, 2])
    path = export.export_onnx(saved, tmp_path / "out" / "model.onnx")
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    session = importlib.import_module("onnxruntime").InferenceSession(str(path))
    images = torch.rand(3, 3, 65, 97, generator=torch.Generator().manual_seed(9))
    (given,) = session.run(None, {"images": images.numpy()})
    model, _ = exported(saved)
    expected = model(images).numpy()
    assert given.shape == (3, 6, 65, 97)
    np.testing.assert_allclose(given, expected, atol=1e-3)
    described = session.get_modelmeta().custom_metadata_map
    assert json.loads(described["input"])["width"] == 97
    assert [entry["name"] for entry in json.loads(described["clusters"])][:2] == ["pavement", "cluster 1"]


def test_a_sites_own_model_is_exported_and_an_untrained_one_never(tmp_path: Path) -> None:
    saved = load_checkpoint(write_checkpoint(tmp_path / "run", SYNTHETIC, [0, 1, 2, 3, 4, 5], sites=2))
    model, metadata = ClusterPredictor(saved, "run", "cpu", site="b").export()
    assert isinstance(model, WholeModel) and metadata["site"] == "b"
    own = saved.extra["site/b/centroids/centroids"]
    np.testing.assert_array_equal(model.segmenter.centroids.numpy(), own)
    assert (
        json.loads(metadata["clusters"])[0]["name"] == "cluster 0"
    )  # classes were matched to no site's clusters
    with pytest.raises(UserError, match="give --site and one of: a, b"):
        ClusterPredictor(saved, "run", "cpu")


def test_a_file_that_differs_is_not_kept(tmp_path: Path) -> None:
    """The comparison itself: a session whose answers are off by more than the tolerance."""
    model, _ = exported(write_checkpoint(tmp_path / "run"))

    class Wrong:
        def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [model(torch.from_numpy(feed["images"])).numpy()[:, ::-1] * 0.9]

    with pytest.raises(UserError, match="does not agree with torch"):
        export._compare(model, Wrong(), torch.rand(1, 3, 65, 97), tmp_path / "model.onnx")


def test_the_file_names_its_outputs_and_is_compared_on_as_many_images_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="the extra 'export' is not installed")
    seen: list[int] = []
    compare = export._compare

    def counted(model: Any, session: Any, images: torch.Tensor, target: Path) -> None:
        seen.append(len(images))
        compare(model, session, images, target)

    monkeypatch.setattr(export, "_compare", counted)
    saved = write_checkpoint(tmp_path / "run", SYNTHETIC, [3, -1, 0, 1, 7, 2])
    path = export.export_onnx(saved, tmp_path / "model.onnx", checked=4)
    assert seen == [1, 2, 1]
    session = importlib.import_module("onnxruntime").InferenceSession(str(path))
    names = json.loads(session.get_modelmeta().custom_metadata_map["names"])
    assert names == ["pavement", "cluster 1", *(SYNTHETIC.names[index] for index in (0, 1, 7, 2))]


def test_images_of_the_check_have_structure_and_differ() -> None:
    images = export.drawn_images(export.CHECKED, (65, 97), seed=0)
    assert images.shape == (50, 3, 65, 97) and 0 <= float(images.min()) <= float(images.max()) <= 1
    assert float(images.std(dim=(2, 3)).min()) > 0.02  # none is of one color
    assert float((images[1:] - images[:-1]).abs().mean(dim=(1, 2, 3)).min()) > 0.02


def test_names_stand_in_the_order_of_the_outputs() -> None:
    entries = json.dumps([{"id": 1, "name": "sky"}, {"id": 0, "name": "road"}])
    assert json.loads(export.output_names({"clusters": entries})) == ["sky", "road"]
    assert json.loads(export.output_names({"classes": entries})) == ["sky", "road"]
    assert export.output_names({}) == "[]"
