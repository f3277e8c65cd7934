"""Tests the folder for a model hub: it gives the run's masks anywhere, and tells nothing of machine and sites."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import mobilenet_v2

import siteseg
from common.checkpoint import load_checkpoint, save_checkpoint
from common.data.classes import load_table
from common.errors import UserError
from server.commands import hub
from server.commands.hub import export_hub
from tests.conftest import ROOT
from tests.support.checkpoints import write_checkpoint, write_network_checkpoint
from tests.support.workshop import save_picture

SYNTHETIC = load_table("synthetic")
METRICS = {
    "round": 1,
    "split": "/secret/path/dev.jsonl",
    "miou": 0.4321,
    "accuracy": 0.5,
    "per_class_iou": {"road": 0.9, "person": None},
    "sites": ["hospital-a", "hospital-b"],
    "bytes_up": {"hospital-a": 10},
    "epsilon": 3.25,
    "delta": 1e-5,
}


def with_metrics(path: Path) -> Path:
    save_checkpoint(path, replace(load_checkpoint(path), metrics=METRICS))
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A backbone's weights as a local file."""
    torch.manual_seed(0)
    path = tmp_path / "machine" / "weights.safetensors"
    path.parent.mkdir()
    save_file(mobilenet_v2().state_dict(), path)
    return path


def test_the_folder_gives_the_masks_of_the_run_where_its_files_are_gone(
    weights: Path, tmp_path: Path
) -> None:
    settings = {"model.weights": str(weights), "simulation.shards": str(tmp_path / "shards"), "run_dir": "x"}
    settings = {key.replace("_", "-"): value for key, value in settings.items()}
    path = with_metrics(write_checkpoint(tmp_path / "run", SYNTHETIC, [3, -1, 0, 1, 7, 2], **settings))
    save_picture(tmp_path / "a.png", size=(48, 64))
    mask = siteseg.load(path).segment(tmp_path / "a.png")
    folder = export_hub(path, tmp_path / "hub")
    files = {
        "model.safetensors",
        "config.json",
        "README.md",
        "load.py",
        "legend.json",
        "backbone.safetensors",
    }
    assert {file.name for file in folder.iterdir()} == files

    shutil.move(folder, tmp_path / "elsewhere")
    shutil.rmtree(weights.parent)
    model = siteseg.load(tmp_path / "elsewhere")
    np.testing.assert_array_equal(model.segment(tmp_path / "a.png"), mask)
    assert model.names[0] == SYNTHETIC.names[0]
    text = "".join(
        file.read_text() for file in (tmp_path / "elsewhere").iterdir() if file.suffix != ".safetensors"
    )
    for hidden in (str(tmp_path), "hospital", "/secret"):
        assert hidden not in text
    done = subprocess.run(
        [sys.executable, tmp_path / "elsewhere/load.py", tmp_path / "a.png"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and (tmp_path / "a.mask.png").is_file(), done.stderr


def test_the_card_says_how_the_model_came_about(tmp_path: Path) -> None:
    path = with_metrics(write_checkpoint(tmp_path / "run", SYNTHETIC, [3, -1, 0, 1, 7, 2]))
    card = (export_hub(path, tmp_path / "hub") / "README.md").read_text()
    for said in (
        "2 sites",
        "| 3 | ",
        "43.2",
        "dev.jsonl",
        "epsilon 3.25",
        "random",
        "No site opened a label",
    ):
        assert said in card, said
    assert card.startswith("---\nlibrary_name: siteseg\n")
    described = json.loads((tmp_path / "hub/config.json").read_text())
    assert described["mapping"] == [3, -1, 0, 1, 7, 2] and "sites" not in described["metrics"]


def test_pretrained_backbones_are_named_with_their_license(tmp_path: Path) -> None:
    saved = load_checkpoint(write_checkpoint(tmp_path / "run"))
    for name, said in (
        ("efficientnet_lite0", "Apache-2.0"),
        ("vit_small_patch16_224.dino", "card of the model"),
    ):
        model = saved.config.model.model_copy(update={"backbone": name, "weights": "pretrained"})
        assert said in hub._backbone(saved.config.model_copy(update={"model": model}))


def test_a_network_and_one_of_a_style_cluster(tmp_path: Path) -> None:
    path = with_metrics(write_network_checkpoint(tmp_path / "net", clusters=True))
    save_picture(tmp_path / "a.png", size=(48, 64))
    for cluster in ("global", 1):
        folder = export_hub(path, tmp_path / f"hub-{cluster}", cluster=cluster)  # type: ignore[arg-type]
        expected = siteseg.load(path, cluster=cluster).segment(tmp_path / "a.png")  # type: ignore[arg-type]
        np.testing.assert_array_equal(siteseg.load(folder).segment(tmp_path / "a.png"), expected)
        assert "site-0" not in (folder / "config.json").read_text()


def test_a_sites_own_model_and_what_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "run", sites=2)
    folder = export_hub(path, tmp_path / "hub", site="b")
    save_picture(tmp_path / "a.png", size=(48, 64))
    expected = siteseg.load(path, site="b").segment(tmp_path / "a.png")
    np.testing.assert_array_equal(siteseg.load(folder).segment(tmp_path / "a.png"), expected)
    with pytest.raises(UserError, match="holds something already"):
        export_hub(path, tmp_path / "hub", site="b")
    with pytest.raises(UserError, match="give --site"):
        export_hub(path, tmp_path / "other")
    assert not (tmp_path / "other").exists()
