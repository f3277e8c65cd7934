"""Tests the site: pages made from the code are whole, the menu holds all pages, and it builds without a fault."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common.models.backbone import BACKBONES
from common.settings.schema import RunConfig
from siteseg.command import ENTRIES
from tests.conftest import ROOT

TEN_MINUTES = ROOT / "docs/ten-minutes.md"


@pytest.fixture(scope="module")
def reference() -> Any:
    """The module docs/reference.py."""
    spec = spec_from_file_location("docs_reference", ROOT / "docs/reference.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_menu_holds_every_page_once(reference: Any) -> None:
    menu = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    own = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(menu) == sorted({*own, *reference.GENERATED, *reference.BORROWED.values()})


def test_every_setting_command_and_backbone_is_in_the_reference(reference: Any) -> None:
    settings = reference.settings_page()
    assert all(f"| `{key}` |" in settings for key in RunConfig().to_flat())
    commands = reference.commands_page()
    assert all(f"## siteseg {name}" in commands for name in ENTRIES)
    assert "## siteseg partition folder" in commands and "| `--root-certificates` |" in commands
    licenses = reference.licenses_page()
    assert (
        all(f"| `{name}` |" in licenses for name in BACKBONES.names()) and "license unknown" not in licenses
    )


def test_the_python_reference_shows_signatures_and_meanings(reference: Any) -> None:
    page = reference.library_page()
    for name in (name for names in reference.LIBRARY.values() for name in names):
        assert f"### {name}\n" in page
    assert "load(run_or_file: str | Path, *, device: str = 'auto'" in page
    assert "- `image`: a path, a PIL image" in page


def test_links_are_fitted_to_the_site(reference: Any) -> None:
    fit = reference.fitted_links
    assert (
        fit("[a](../CONTRIBUTING.md#b) [c](privacy.md#d)", "docs/x.md")
        == "[a](contributing.md#b) [c](privacy.md#d)"
    )
    assert fit("[a](docs/faults.md) [b](server/app.py)", "SECURITY.md") == "[a](faults.md) b"
    assert fit("[a](#here) [b](https://example.org) ![c](demo.png)", "docs/x.md") == (
        "[a](#here) [b](https://example.org) ![c](demo.png)"
    )
    assert fit('[1]: ../tests/a.py "test_a"', "docs/x.md") == "- 1: `tests/a.py` test_a"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="the extra 'docs' is not installed")
def test_the_site_builds_without_a_warning_and_asks_no_other_machine(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"(https?:)?//", text), page


@pytest.mark.idle
def test_the_ten_minutes_are_executed_from_the_page(tmp_path: Path) -> None:
    """Every block of the page, in its order, in an empty folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", TEN_MINUTES.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 6
    for kind, body in blocks:
        if kind == "python":
            first = next((tmp_path / "shards/try/data").rglob("*.png"))
            Image.open(first).convert("RGB").save(tmp_path / "image.jpg")
            commands = [[sys.executable, "-c", body]]
        else:
            commands = [[sys.executable, "-m", *line.split()] for line in body.splitlines()]
        for command in commands:
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, (command, done.stderr[-3000:])
    for made in (
        "shards/try/split.png",
        "runs/try/report.html",
        "masks/index.html",
        "masks/legend.json",
        "model/load.py",
    ):
        assert (tmp_path / made).is_file(), made
