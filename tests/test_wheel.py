"""Tests the wheel: one package, imports rewritten, and a model and a simulation that work far from any checkout."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.support.checkpoints import write_checkpoint
from tests.support.workshop import save_picture

PARTS = ("server", "client", "common", "partitions")
# what a build needs
COPIED = (*PARTS, "siteseg", "recipes", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
THREE_LINES = """
import sys, time
start = time.process_time()
import siteseg
assert time.process_time() - start < 3
model = siteseg.load(sys.argv[1])
print(model.segment(sys.argv[2]).shape, siteseg.__file__, "flwr" in sys.modules)
"""


@pytest.fixture(scope="module")
def build() -> Any:
    """The module setup.py."""
    spec = spec_from_file_location("siteseg_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_imports_names_of_modules_and_commands_are_rewritten(build: Any) -> None:
    text = (
        '"""From server to client, by `python -m server simulate --recipe recipes/a-b.toml`."""\n'
        "from common.errors import UserError\nfrom server import states as s\nimport numpy as np\n"
        'def f():\n    from client.app import app  # é\n    return {"server": "common.losses", "x": "common.nowhere"}\n'
    )
    found = build.packaged(text, {"common.losses", "common", "server"})
    assert found == (
        '"""From server to client, by `siteseg simulate --recipe a-b`."""\n'
        "from siteseg.common.errors import UserError\nfrom siteseg.server import states as s\nimport numpy as np\n"
        "def f():\n    from siteseg.client.app import app  # é\n"
        '    return {"server": "siteseg.common.losses", "x": "common.nowhere"}\n'
    )
    with pytest.raises(ValueError, match="line 1"):
        build.packaged("import common.errors\n", set())


def test_nothing_in_the_wheel_imports_a_part_by_its_old_name(build: Any, tmp_path: Path) -> None:
    build.copy_parts(tmp_path / "siteseg")
    files = sorted(tmp_path.rglob("*.py"))
    assert len(files) > 150
    for path in files:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.partition(".")[0] in PARTS], path
        assert "python -m server" not in text and "python -m client" not in text, path
    for data in (
        "common/data/tables/camvid.json",
        "server/report/templates/run.html.md",
        "recipes/own-pictures.toml",
    ):
        assert (tmp_path / "siteseg" / data).is_file()


def run(folder: Path, *words: str | Path) -> str:
    """Run a command in a folder with nothing of this checkout on the path; return its output."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def pip(folder: Path, *words: str | Path) -> str:
    """Run pip without a network."""
    return run(folder, sys.executable, "-m", "pip", *words)


def environment(folder: Path, *installed: str | Path) -> Path:
    """Make an environment that finds this one's libraries, but not this project; return its folder of commands."""
    run(folder, sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    places = sysconfig.get_paths("venv", vars={"base": str(folder / "venv")})
    # the path alone: what .pth files there add, an editable installation say, is left out
    Path(places["purelib"], "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = Path(places["scripts"]) / "python"
    pip(folder, "--python", python, "install", "--no-deps", "--no-index", "--no-build-isolation", *installed)
    return python.parent


def copied_checkout(target: Path, names: Sequence[str] = COPIED) -> Path:
    """Copy what a build needs, so that it leaves nothing in the checkout."""
    target.mkdir()
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    return target


@pytest.mark.idle
def test_an_installed_wheel_segments_and_simulates_far_from_any_checkout(tmp_path: Path) -> None:
    """By way of a source archive, as an index would hold both."""
    source = copied_checkout(tmp_path / "source")
    (source / "build/lib/server").mkdir(parents=True)
    (source / "build/lib/server/__init__.py").touch()  # an earlier version's build
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    run(source, sys.executable, "-c", code)
    (archive,) = (source / "dist").glob("*.tar.gz")
    pip(
        tmp_path,
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        tmp_path / "wheels",
        archive,
    )
    pip(source, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path / "direct", ".")
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    (direct,) = (tmp_path / "direct").glob("*.whl")
    assert wheel.name == direct.name
    assert abs(wheel.stat().st_size - direct.stat().st_size) < 1000

    commands = environment(tmp_path, wheel)
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    for part in PARTS:
        code = f"from importlib.util import find_spec; assert find_spec({part!r}) is None"
        run(empty, commands / "python", "-c", code)
    write_checkpoint(empty / "run")
    save_picture(empty / "a.png")
    said = run(empty, commands / "python", "-c", THREE_LINES, "run", "a.png")
    assert "(24, 32)" in said and str(tmp_path / "venv") in said and "False" in said

    siteseg = commands / "siteseg"
    assert run(empty, siteseg, "--version").startswith("siteseg ")
    assert "siteseg simulate --recipe" in run(empty, siteseg, "simulate", "--help")
    words = ("synthetic", "--sites", "2", "--images-per-site", "4", "--eval-images", "2", "--size", "72x96")
    printed = run(empty, siteseg, "partition", *words, "--out", "shards")
    assert "siteseg simulate" in printed and "python -m" not in printed
    settings = ("rounds=2", "model.height=65", "model.width=97")
    given = [word for setting in settings for word in ("--set", setting)]
    options = ("--shards", "shards", "--run-dir", "federation", *given)
    assert "report:" in run(empty, siteseg, "simulate", "--recipe", "demo-default", *options)
    assert "round 2/2" in (empty / "federation/log.txt").read_text()  # loggers have another name here
    run(empty, siteseg, "segment", "--checkpoint", "federation", "--out", "masks", "a.png")
    assert (empty / "masks/labels/a.png").is_file()
    run(empty, siteseg, "doctor")


@pytest.mark.idle
def test_an_editable_installation_keeps_the_folders_of_the_checkout(tmp_path: Path) -> None:
    source = copied_checkout(tmp_path / "source")
    commands = environment(tmp_path, "--editable", source)
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    said = run(
        empty, commands / "python", "-c", "import server, siteseg; print(server.__file__, siteseg.__file__)"
    )
    assert said.split() == [str(source / "server/__init__.py"), str(source / "siteseg/__init__.py")]
    assert "rounds" in run(empty, commands / "siteseg", "settings", "--recipe", "own-pictures")
    run(empty, commands / "python", "-m", "server", "--help")
