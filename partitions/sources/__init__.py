"""Which data sets does the command know?"""

from __future__ import annotations

from partitions.sources.base import Dataset, Source
from partitions.sources.cityscapes import CITYSCAPES
from partitions.sources.cocostuff import COCOSTUFF
from partitions.sources.crosscity import CROSSCITY
from partitions.sources.folder import FOLDER
from partitions.sources.gta5 import GTA5
from partitions.sources.idda import IDDA
from partitions.sources.leaf import LEAF
from partitions.sources.mapillary import MAPILLARY
from partitions.sources.potsdam import POTSDAM
from partitions.sources.scenes import SYNTHETIC
from partitions.sources.splits import CAMVID, CRACKFOREST
from partitions.sources.voc import VOC

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        SYNTHETIC,
        CAMVID,
        CRACKFOREST,
        CITYSCAPES,
        COCOSTUFF,
        POTSDAM,
        VOC,
        GTA5,
        IDDA,
        CROSSCITY,
        MAPILLARY,
        LEAF,
        FOLDER,
    )
}

__all__ = ["SOURCES", "Dataset", "Source"]
