"""A Flower app package carries the templates: a report can be written from what `flwr run` ships."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

from tests.conftest import ROOT

SCRIPT = """
import sys, server.report.page as page, server.report.compare as compare
assert page.__file__.startswith(sys.argv[1]), page.__file__
print(page.write_report(sys.argv[2]), compare.compare([sys.argv[2]], sys.argv[3]))
"""


def test_a_report_is_written_from_the_app_package(tmp_path: Path) -> None:
    app = tmp_path / "app"
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT))) as package:
        package.extractall(app)
    in_tree, in_app = (
        {file.name for file in (root / "server/report/templates").iterdir()} for root in (ROOT, app)
    )
    assert in_app == in_tree and "run.html.md" in in_app
    with tarfile.open(ROOT / "tests/fixtures/runs/default.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    run = tmp_path / "runs" / "default"
    (run / "report.html").unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(app), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", SCRIPT, str(app), str(run), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in (run / "report.html", tmp_path / "out" / "compare.html"):
        text = page.read_text()
        assert "<svg" in text and "mIoU" in text and "</html>" in text
