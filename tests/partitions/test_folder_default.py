"""What does `partitions folder` do with a bare folder of pictures and no further words?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from partitions.__main__ import partitions_main as main


def test_pictures_without_domains_are_dealt_out_evenly(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(8):
        Image.fromarray(np.full((20, 30, 3), index * 30, np.uint8)).save(pictures / f"{index}.png")
    main(["folder", "--root", str(pictures), "--sites", "2", "--out", str(tmp_path / "shards")])
    described = json.loads((tmp_path / "shards" / "partition.json").read_text())
    assert described["rule"] == "iid"
    counts = [len((tmp_path / "shards" / f"site-{i}.jsonl").read_text().splitlines()) for i in range(2)]
    assert counts == [4, 4]
