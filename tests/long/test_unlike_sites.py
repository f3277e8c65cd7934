"""Trains three sites that have nothing in common: the masks are warned of, in words, on disk and in the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.data.manifest import read_sites
from common.settings.load import read_recipe
from server.commands.audit import audit, audit_run
from server.loop.run import run
from server.report.page import write_report
from server.tasks.base import load_settings
from tests.conftest import ROOT
from tests.support.federation import local_grid
from tests.support.unlike_sites import unlike_sites


@pytest.mark.idle
@pytest.mark.shared
def test_three_unlike_sites_are_named_after_training(
    shared_data: Path, shared_weights: Path, tmp_path: Path
) -> None:
    shards = unlike_sites(shared_data, tmp_path)
    settings = load_settings(
        read_recipe(ROOT / "recipes/own-pictures.toml"),
        {
            "model.weights": str(shared_weights / "mobilenet_v2_imagenet.safetensors"),
            "simulation.shards": str(shards),
            "run-dir": str(tmp_path / "run"),
            "sites.expected": 3,
            "sites.wait-seconds": 1,
        },
    )
    folder = run(local_grid(3), settings)
    sites = read_sites(shards)
    found = {one.kind: one.sites for one in audit_run(folder, audit(None, sites), sites)}
    assert found["apart"] == ("site-0", "site-1", "site-2") and "place" in found
    record = json.loads((folder / "warnings.json").read_text())
    assert [one["kind"] for one in record["before"]] == ["unlike"]
    page = write_report(folder).read_text()
    assert "hardly a cluster with any other site" in page and "look like no other site" in page
