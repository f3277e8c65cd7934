"""Drives the naming page in a browser: names two clusters, joins two, marks one, and finds it in legend and masks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from partitions.__main__ import partitions_main
from server.commands.name import serve_page, write_names_page
from server.commands.segment import segment
from tests.support.checkpoints import write_checkpoint
from tests.support.odd_images import photo

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# what a person would do, and what the page says of it
DRIVER = """
<script>
addEventListener("load", async () => {
  const set = (id, value) => {
    const field = document.getElementById(id);
    if (field.type === "checkbox") field.checked = value; else field.value = value;
    field.dispatchEvent(new Event("input", {bubbles: true}));
  };
  set("name-0", " wet  road ");
  set("name-3", "sky");
  set("join-1", "0");
  set("nothing-2", true);
  document.getElementById("save").click();
  const state = document.getElementById("state");
  for (let i = 0; i < 100 && !state.textContent.includes("aved"); i++) await new Promise(r => setTimeout(r, 100));
  document.title = "wide " + document.documentElement.scrollWidth + " of " + innerWidth;
});
</script></body>
"""


def _open(address: str, width: int) -> str:
    """Return what the browser made of a page."""
    assert BROWSER is not None
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    words += ["--virtual-time-budget=20000", "--dump-dom", address]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.idle
@pytest.mark.net
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_person_names_joins_and_marks_clusters(tmp_path: Path, width: int) -> None:
    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.fromarray(photo(index)).save(tmp_path / "images" / f"{index}.png")
    words = ["folder", "--root", str(tmp_path / "images"), "--sites", "1", "--out", str(tmp_path / "shards")]
    partitions_main(words)
    write_checkpoint(tmp_path / "run", **{"simulation.shards": str(tmp_path / "shards")})
    run = tmp_path / "run"
    segment(run, tmp_path / "before", [tmp_path / "images"])
    page = write_names_page(run, None, 3)
    page.write_text(page.read_text().replace("</body>", DRIVER))
    server, address = serve_page(run, page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        shown = _open(address, width)
    finally:
        server.shutdown()
        server.server_close()
    assert "saved: 4 of 6 clusters named, 3 classes" in shown
    found = re.search(r"<title>wide (\d+) of (\d+)", shown)
    assert found is not None and int(found[1]) <= int(found[2]), "the page is wider than its window"
    segment(run, tmp_path / "after", [tmp_path / "images"])
    legend = json.loads((tmp_path / "after" / "legend.json").read_text())
    assert [one["name"] for one in legend][:3] == ["wet road", "nothing", "sky"]
    for name in ("0.png", "1.png", "2.png"):
        old, new = (
            np.asarray(Image.open(tmp_path / folder / "labels" / name)) for folder in ("before", "after")
        )
        expected = np.array([0, 0, 1, 2, 3, 4], np.uint8)[old]  # two joined; those without a name follow
        assert np.array_equal(new, expected)
