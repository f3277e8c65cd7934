"""Whole recipes, run by the commands that the README names, give the figures that it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.idle

LIMIT_SECONDS = 900
"""A recipe takes two to four minutes on two idle cores; the rest is for machines in use."""


def python(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, text=True, capture_output=True, timeout=LIMIT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def last_line(run_dir: Path) -> dict[str, float]:
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    line: dict[str, float] = json.loads(text)
    return line


def test_camvid_default_scores_what_the_readme_prints(
    tmp_path: Path, shared_data: Path, shared_weights: Path
) -> None:
    python("-m", "partitions", "camvid", "--root", str(shared_data / "camvid"), "--by", "domain",
           "--out", str(tmp_path / "shards"))  # fmt: skip
    weights = shared_weights / "mobilenet_v2_imagenet.safetensors"
    python("-m", "server", "simulate", "--recipe", "recipes/camvid-default.toml",
           "--shards", str(tmp_path / "shards"), "--run-dir", str(tmp_path / "run"),
           "--set", f"model.weights={weights}")  # fmt: skip
    line = last_line(tmp_path / "run")
    # 25.4 in the README; features differ in their last bits from one CPU to the next
    assert line["round"] == 40 and line["miou"] == pytest.approx(0.254, abs=0.003)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shards of ``make demo`` and a run of the recipes that the demo compares fastest."""
    folder = tmp_path_factory.mktemp("demo")
    python("-m", "partitions", "synthetic", "--sites", "4", "--out", str(folder / "shards"))
    for name in ("default", "centralised"):
        python("-m", "server", "simulate", "--recipe", f"recipes/demo-{name}.toml",
               "--shards", str(folder / "shards"), "--run-dir", str(folder / name))  # fmt: skip
    return folder


def test_the_demo_learns_and_federated_equals_pooled(demo: Path) -> None:
    federated, pooled = (last_line(demo / name) for name in ("default", "centralised"))
    assert federated["miou"] > 0.15, "eight clusters at random score about 0.1"
    assert federated["miou"] == pytest.approx(pooled["miou"], abs=0.005)


def test_the_demo_ends_with_a_comparison(demo: Path) -> None:
    printed = python("-m", "server", "report", str(demo / "default"), str(demo / "centralised"),
                     "--out", str(demo / "comparison"))  # fmt: skip
    assert f"{100 * last_line(demo / 'default')['miou']:.1f}" in printed
    assert any((demo / "comparison").glob("*.html"))
