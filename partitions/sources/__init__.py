"""Which data sets does the command know?"""

from __future__ import annotations

from partitions.sources.base import Dataset, Source
from partitions.sources.cityscapes import CITYSCAPES
from partitions.sources.cocostuff import COCOSTUFF
from partitions.sources.folder import FOLDER
from partitions.sources.leaf import LEAF
from partitions.sources.potsdam import POTSDAM
from partitions.sources.scenes import SYNTHETIC
from partitions.sources.splits import CAMVID, CRACKFOREST
from partitions.sources.voc import VOC

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (SYNTHETIC, CAMVID, CRACKFOREST, CITYSCAPES, COCOSTUFF, POTSDAM, VOC, LEAF, FOLDER)
}

__all__ = ["SOURCES", "Dataset", "Source"]
