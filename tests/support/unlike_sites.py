"""Three sites that have nothing in common: drives, nuclei, steel."""

from __future__ import annotations

import shutil
from pathlib import Path

from partitions.__main__ import partitions_main


def unlike_sites(data: Path, folder: Path) -> Path:
    """Make shards of three sites with 12 images each; ``data`` is the folder of the real data sets."""
    for name in ("camvid", "nuclei", "steel"):
        (folder / "pictures" / name).mkdir(parents=True)
        for path in sorted((data / name / "train" / "images").iterdir())[::3][:12]:
            shutil.copy(path, folder / "pictures" / name)
    partitions_main(["folder", "--root", str(folder / "pictures"), "--out", str(folder / "shards")])
    return folder / "shards"
