"""Which data sets does the command know?"""

from __future__ import annotations

from partitions.sources.base import Dataset, Source
from partitions.sources.folder import FOLDER
from partitions.sources.scenes import SYNTHETIC
from partitions.sources.splits import CAMVID, CRACKFOREST

SOURCES: dict[str, Source] = {s.name: s for s in (SYNTHETIC, CAMVID, CRACKFOREST, FOLDER)}

__all__ = ["SOURCES", "Dataset", "Source"]
